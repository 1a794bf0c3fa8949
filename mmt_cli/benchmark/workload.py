"""What a benchmark runs again and again: the face that all workloads share, and the random text that they read."""

import random
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mmt_cli.benchmark.layers import Stopwatch
from mmt_cli.benchmark.options import Case
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.transformer import MultimodalTransformer


class Workload(Protocol):
    """The same work on the same batch at each run.

    Attributes:
        whole: name of the phase that a run is.
        parts: names of the phases inside it, in their order; one that does not happen is left out of reports.
        across: names of measurements that go across these phases.
        trains: whether gradients are computed.
        model: what is measured.
        device: where it runs.
        dtype: what it computes in.
        case: batch size and lengths.
    """

    whole: str
    parts: tuple[str, ...]
    across: tuple[str, ...]
    trains: bool
    model: MultimodalTransformer
    device: torch.device
    dtype: torch.dtype
    case: Case

    def run(self, watch: Stopwatch[Any, Any]) -> None:
        """Do the work once under the stopwatch; the caller turns gradients on or off."""

    def tokens_per_s(self, phases: Mapping[str, PhaseTimes]) -> float | None:
        """Return text tokens a second, all rows together; None where there are none."""


def image_places(config: ModelConfig, tokens: int | None = None) -> list[int]:
    """Return the placeholders of an image in the text that is written behind; none where it stands elsewhere.

    Args:
        config: of the model.
        tokens: of the image; as many as one of the tower's own size has if None.
    """
    placeholder = config.placeholder_id
    if placeholder is None or config.prompt_encoder is not None:
        return []
    return [placeholder] * (config.num_image_tokens if tokens is None else tokens)


def random_text(config: ModelConfig, rows: int, length: int, seed: int, tokens: int | None = None) -> list[list[int]]:
    """Return token ids, `length` a row behind the placeholders of an image, if any; the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311
    image = image_places(config, tokens)
    words = [token for token in range(config.text.vocab_size) if token not in image[:1]]
    return [[*image, *draw.choices(words, k=length)] for _ in range(rows)]


def random_questions(
    config: ModelConfig, rows: int, length: int, seed: int, tokens: int | None = None
) -> Tensor | None:
    """Return prompt_ids_BP of `length` words behind an image's placeholders, if any; None without a prompt encoder."""
    if config.prompt_encoder is None:
        return None
    return torch.tensor(random_text(config.of_prompt_encoder, rows, length, seed, tokens))
