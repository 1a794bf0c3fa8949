"""Texts that repeat themselves end there, and nothing else about them changes."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmt_cli.decoding.ending import ending
from mmt_cli.decoding.generate import Generated, generate
from mmt_cli.decoding.loops import MAX_PERIOD, loops, repeats_needed
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.decoding.search import BeamItem, Candidate

END = 0
SHARED_FIXTURE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def _first_loop(tokens: Sequence[int], start: int = 0) -> int | None:
    """The first length, `start` or more, at which the text loops."""
    return next((length for length in range(start, len(tokens) + 1) if loops(tokens[:length])), None)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ([7, 7, 7, 7, 7], 4),
        ([1, 2, 7, 7, 7, 7], 6),
        ([7, 7, 7], None),
        ([1, 2, 1, 2, 1, 2, 1], 6),
        ([9, 1, 2, 1, 2, 1, 2, 1], 7),
        ([1, 2, 1, 2, 1], None),
        ([1, 2, 3, 4, 5] * 3, 15),
        ([1, 2, 3, 4, 5] * 2 + [1, 2, 3, 4], None),
        ([1, 2, 3, 4, 5, 6] * 2, 12),
        ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5], None),
        ([8, 8, 8, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7], 17),
        ([1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3], 12),
        ([1, 2, 3, 4, 9, 5, 1, 2, 3, 4, 9, 6], None),
        ([], None),
    ],
)
def test_a_text_loops_at_the_last_token_of_its_last_repetition(tokens: list[int], length: int | None) -> None:
    assert _first_loop(tokens) == length
    assert _first_loop(tuple(tokens)) == length


@pytest.mark.parametrize("period", [1, 2, 5, 6, 7, MAX_PERIOD, MAX_PERIOD + 1])
@pytest.mark.parametrize("before", [0, 1, 300])
def test_blocks_of_every_length_up_to_a_sentence_are_found(period: int, before: int) -> None:
    block = list(range(1000, 1000 + period))
    tokens = [*range(before), *block * 9]
    expected = before + period * repeats_needed(period) if period <= MAX_PERIOD else None
    assert _first_loop(tokens) == expected


def test_the_shorter_a_block_the_more_often_it_may_stand() -> None:
    assert [repeats_needed(period) for period in range(1, 9)] == [4, 3, 3, 3, 3, 2, 2, 2]


@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_loop_is_what_its_definition_says(tokens: list[int]) -> None:
    def stands(period: int) -> bool:
        count = repeats_needed(period)
        return len(tokens) >= period * count and tokens[-period * count :] == tokens[-period:] * count

    assert loops(tokens) == any(stands(period) for period in range(1, MAX_PERIOD + 1))


@given(st.lists(st.integers(0, 3), min_size=200, max_size=200), st.lists(st.integers(0, 3), max_size=100))
def test_only_the_end_of_a_long_text_is_looked_at(tail: list[int], before: list[int]) -> None:
    assert loops([*before, *tail]) == loops(tail)


@pytest.mark.parametrize(
    ("tokens", "changes", "expected"),
    [
        ((4, 4, 4, 4), {}, "loop"),
        ((4, 4, 4), {}, None),
        ((4, 4, 4, 4), {"stop_loops": False}, None),
        ((4, 4, 4, 4), {"min_new_tokens": 5}, None),
        ((4, 4, 4, 4), {"min_new_tokens": 4}, "loop"),
        ((4, 4, 4, 4), {"max_new_tokens": 4}, "loop"),
        ((4, 4, 4, 5), {"max_new_tokens": 4}, "length"),
        ((END, END, END, END), {}, "stop"),
        ((4, 4, 4, END), {"max_new_tokens": 4}, "stop"),
        ((), {"max_new_tokens": 0}, "length"),
        ((), {}, None),
    ],
)
def test_why_a_text_ends(tokens: tuple[int, ...], changes: dict[str, Any], expected: str | None) -> None:
    options = GenerationOptions(**{"max_new_tokens": 9, "stop_loops": True, "end_token_ids": (END,), **changes})
    assert ending(tokens, options) == expected


def _logits(seed: int, vocabulary: int, memory: int) -> Callable[[list[list[int]]], Tensor]:
    """Logits from the last few tokens, so that a text comes to repeat itself."""

    def of(row: list[int]) -> Tensor:
        state = hash((seed, *row[-memory:])) % 2**31
        return 3.0 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(state))

    return lambda rows: torch.stack([of(row) for row in rows])


_MODELS = st.tuples(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 6))


def _write(stepper: Any, model: tuple[int, int, int], options: GenerationOptions) -> list[Generated]:
    prompts = [[1], [2, 3], []]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return [text for item in generate(stepper(_logits(*model), prompts), prompts, options, generators) for text in item]


@SHARED_FIXTURE
@given(model=_MODELS, minimum=st.integers(0, 20), sampling=st.booleans())
def test_a_text_is_a_beginning_of_what_it_is_without_the_detector(
    model: tuple[int, int, int], minimum: int, sampling: bool, recompute_stepper: Any
) -> None:
    changes: dict[str, Any] = {"temperature": 0.5, "num_captions": 3} if sampling else {}
    without = GenerationOptions(max_new_tokens=40, min_new_tokens=minimum, end_token_ids=(END,), **changes)
    texts = _write(recompute_stepper, model, replace(without, stop_loops=True))
    for text, whole in zip(texts, _write(recompute_stepper, model, without), strict=True):
        length = _first_loop(whole.tokens, max(minimum, 1))
        if length is None or whole.tokens[length - 1] == END:
            assert text == whole
        else:
            assert (text.tokens, text.finish_reason) == (whole.tokens[:length], "loop")


def test_most_of_these_models_loop(recompute_stepper: Any) -> None:
    """Or the test above would show nothing."""
    options = GenerationOptions(max_new_tokens=40, end_token_ids=(END,), stop_loops=True)
    texts = [text for seed in range(20) for text in _write(recompute_stepper, (seed, 8, 2), options)]
    periods = {len(text.tokens) for text in texts if text.finish_reason == "loop"}
    assert len(periods) > 5


@SHARED_FIXTURE
@given(model=_MODELS, minimum=st.integers(0, 12), captions=st.integers(1, 3))
def test_beams_never_go_on_behind_a_loop(
    model: tuple[int, int, int], minimum: int, captions: int, recompute_stepper: Any
) -> None:
    options = GenerationOptions(
        max_new_tokens=16,
        min_new_tokens=minimum,
        num_beams=3,
        num_captions=captions,
        end_token_ids=(END,),
        stop_loops=True,
    )
    texts = _write(recompute_stepper, model, options)
    assert len(texts) == 3 * captions
    # Where two tokens are all there are, the worst of several captions may be one that everything has ended.
    for text in texts[::captions]:
        assert _first_loop(text.tokens[:-1], max(minimum, 1)) is None
        assert text.finish_reason == ending(text.tokens, options)


@SHARED_FIXTURE
@given(seed=st.integers(0, 10**6))
def test_beams_take_a_loop_for_an_end(seed: int, recompute_stepper: Any) -> None:
    """As many beams as there are texts find the likeliest of all that end, by a token, a loop or their length."""
    options = GenerationOptions(
        max_new_tokens=6, num_beams=64, length_penalty=0.0, end_token_ids=(END,), stop_loops=True
    )
    table_TTV = 2.0 * torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed))
    table_TTV[1, 1, 1] += 3.0
    table_TTV[..., END] -= 2.0

    def logits(rows: list[list[int]]) -> Tensor:
        return torch.stack([table_TTV[row[-2], row[-1]] for row in rows])

    def logprob(text: tuple[int, ...]) -> float:
        row, total = [2, 1], 0.0
        for token in text:
            total += logits([row])[0].log_softmax(dim=-1)[token].item()
            row = [*row, token]
        return total

    def whole(text: tuple[int, ...]) -> bool:
        return ending(text, options) is not None and all(
            ending(text[:length], options) is None for length in range(1, len(text))
        )

    lengths = range(1, options.max_new_tokens + 1)
    every = [text for length in lengths for text in itertools.product(range(3), repeat=length) if whole(text)]
    [[best]] = generate(recompute_stepper(logits, [[2, 1]]), [[2, 1]], options)
    assert best.logprob == pytest.approx(max(map(logprob, every)), abs=1e-4)


def test_an_item_that_everything_ends_keeps_its_place() -> None:
    """Two tokens, one of them the end, and a text that the other would close."""
    options = GenerationOptions(max_new_tokens=9, num_beams=2, num_captions=2, end_token_ids=(END,), stop_loops=True)
    item = BeamItem(options)
    for _ in range(3):
        item.advance([Candidate(-0.1, -0.1, 0, 1), Candidate(-0.2, -0.1, 0, 1)])
    item.advance([Candidate(-0.3, -0.1, 0, 1), Candidate(-0.4, -0.2, 1, END)])
    assert [(beam.tokens, beam.score) for beam in item.finished] == [((1, 1, 1, 1), -0.3), ((1, 1, 1, END), -0.4)]
    assert item.done
    assert [(beam.tokens, beam.score) for beam in item.beams] == [((1, 1, 1, 1), -math.inf)] * 2


def test_neither_module_imports_torch() -> None:
    code = "import sys, mmt_cli.decoding.ending; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
