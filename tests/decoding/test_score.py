"""Scoring a text that is written already gives what writing it gave."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.decoding.generate import generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.decoding.score import score
from mmt_cli.errors import ModelError

PROMPTS = [[5, 7], [], [3], [9, 9, 9, 9]]
ENDS = tuple(range(2, 30, 5))
Logits = Callable[[list[list[int]]], Tensor]


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_beams": 3, "repetition_penalty": 1.5}, {"temperature": 2.0, "top_k": 9}],
    ids=["greedy", "beams", "sampling"],
)
def test_a_text_scores_the_log_probability_it_was_written_with(
    changes: dict[str, Any], recompute_stepper: Any, toy_logits: Logits
) -> None:
    options = GenerationOptions(max_new_tokens=12, end_token_ids=ENDS, **changes)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    texts = [item[0] for item in generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, generators)]
    assert len({len(text.tokens) for text in texts}) > 1
    stepper = recompute_stepper(toy_logits, PROMPTS)
    found = score(stepper, [text.tokens for text in texts])
    assert found == pytest.approx([text.logprob for text in texts], abs=1e-4)
    # The first call reads the prompts, the others only texts that have a token left to be scored.
    lengths = [len(text.tokens) for text in texts]
    assert stepper.sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_text_scores_the_same_alone(recompute_stepper: Any, toy_logits: Logits) -> None:
    texts = [[4, 8, 2], [1], [6, 6, 6, 6, 6], [2, 3]]
    together = score(recompute_stepper(toy_logits, PROMPTS), texts)
    alone = [score(recompute_stepper(toy_logits, [ids]), [text])[0] for ids, text in zip(PROMPTS, texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_logits_that_are_no_numbers_are_an_error(recompute_stepper: Any) -> None:
    stepper = recompute_stepper(lambda rows: torch.full((len(rows), 9), float("nan")), [[1]])
    with pytest.raises(ModelError, match="NaN"):
        score(stepper, [[1, 2]])
