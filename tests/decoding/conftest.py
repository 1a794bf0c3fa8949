"""A slow stepper without a cache, to hold the decoding loops against, and a tiny model of transformers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 30
Logits = Callable[[list[list[int]]], Tensor]


class RecomputeStepper:
    """Keeps the ids of each row and calls `logits` on all of them, from the first on, at every step.

    Attributes:
        rows: Ids of each row, the prompt included.
        sizes: How many rows each call computed.
    """

    def __init__(self, logits: Logits, prompt_ids: Sequence[Sequence[int]]) -> None:
        self._logits = logits
        self._started = False
        self.rows = [list(ids) for ids in prompt_ids]
        self.sizes: list[int] = []

    def start(self) -> Tensor:
        assert not self._started
        self._started = True
        return self._compute()

    def step(self, token_ids_R: Tensor) -> Tensor:
        assert self._started
        assert token_ids_R.dtype == torch.int64
        assert token_ids_R.shape == (len(self.rows),)
        self.rows = [[*row, token] for row, token in zip(self.rows, token_ids_R.tolist(), strict=True)]
        return self._compute()

    def reorder(self, row_R: Tensor) -> None:
        assert self._started
        assert row_R.dtype == torch.int64
        assert row_R.numel() > 0
        self.rows = [list(self.rows[row]) for row in row_R.tolist()]

    def _compute(self) -> Tensor:
        self.sizes.append(len(self.rows))
        return self._logits(self.rows)


def hashed_logits(rows: list[list[int]]) -> Tensor:
    """Logits that depend on all ids of a row and on nothing else, so that a batch changes no bit of them."""
    logits = []
    for row in rows:
        seed = 17
        for token in row:
            seed = (seed * 31 + token + 1) % 1_000_003
        logits.append(2.0 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(logits)


@pytest.fixture
def recompute_stepper() -> type[RecomputeStepper]:
    return RecomputeStepper


@pytest.fixture
def toy_logits() -> Logits:
    return hashed_logits


@pytest.fixture(scope="session")
def gpt2() -> GPT2LMHeadModel:
    """Weights strong enough that texts differ, and that end tokens come at different times."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            strength = 0.2 if "wte" in name else 1.0 if "wpe" in name else 0.4
            parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def gpt2_logits(gpt2: GPT2LMHeadModel) -> Logits:
    """Next-token logits of rows of equal length, computed without a cache."""

    def logits(rows: list[list[int]]) -> Tensor:
        with torch.inference_mode():
            return gpt2(torch.tensor(rows), use_cache=False).logits[:, -1]

    return logits
