"""The decoding loops with a toy model: batches, streams, draws, early leaving, limits."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.decoding.generate import Generated, generate, generate_stream
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError

PROMPTS = [[5, 7], [], [3], [9, 9, 9, 9], [4, 8, 15], [16, 23], [21]]
ENDS = (2, 13, 17, 20)
GREEDY = GenerationOptions(max_new_tokens=12, end_token_ids=ENDS)
Logits = Callable[[list[list[int]]], Tensor]

EVERY_WAY = {
    "greedy": GREEDY,
    "greedy-filtered": replace(GREEDY, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3),
    "sampling": replace(GREEDY, temperature=1.4, top_k=20, top_p=0.95),
    "several-samples": replace(GREEDY, temperature=1.2, num_captions=3, no_repeat_ngram_size=1),
    "beams": replace(GREEDY, num_beams=3),
    "beams-filtered": replace(
        GREEDY, num_beams=4, num_captions=4, early_stopping=True, repetition_penalty=0.9, no_repeat_ngram_size=2
    ),
    "beams-never": replace(GREEDY, num_beams=2, num_captions=2, early_stopping="never", min_new_tokens=2),
}


def _generators(prompts: list[list[int]], seed: int = 0) -> list[torch.Generator]:
    """One a prompt, seeded by the prompt alone."""
    return [torch.Generator().manual_seed(1000 * seed + sum(ids) * 7 + len(ids)) for ids in prompts]


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_batch_writes_what_each_item_writes_alone(way: str, recompute_stepper: Any, toy_logits: Logits) -> None:
    options = EVERY_WAY[way]
    together = generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, _generators(PROMPTS))
    for ids, item in zip(PROMPTS, together, strict=True):
        [alone] = generate(recompute_stepper(toy_logits, [ids]), [ids], options, _generators([ids]))
        assert item == alone
    backwards = PROMPTS[::-1]
    reversed_items = generate(recompute_stepper(toy_logits, backwards), backwards, options, _generators(backwards))
    assert reversed_items[::-1] == together
    lengths = {len(text.tokens) for item in together for text in item}
    assert len(lengths) > 1, "texts that all end at once leave nothing to test"


@pytest.mark.parametrize("way", EVERY_WAY)
def test_texts_keep_to_their_options(way: str, recompute_stepper: Any, toy_logits: Logits) -> None:
    options = EVERY_WAY[way]
    items = generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, _generators(PROMPTS))
    for ids, texts in zip(PROMPTS, items, strict=True):
        assert len(texts) == options.num_captions
        for text in texts:
            assert max(1, options.min_new_tokens) <= len(text.tokens) <= options.max_new_tokens
            ended = text.tokens[-1] in ENDS
            assert text.finish_reason == ("stop" if ended else "length")
            assert ended or len(text.tokens) == options.max_new_tokens
            assert not set(text.tokens[:-1]) & set(ENDS)
            assert text.logprob == pytest.approx(_logprob(toy_logits, ids, text), abs=1e-4)
            if size := options.no_repeat_ngram_size:
                whole = [*ids, *text.tokens]
                runs = Counter(tuple(whole[at : at + size]) for at in range(len(ids), len(whole) - size + 1))
                assert set(runs.values()) <= {1}


def _logprob(logits: Logits, prompt: list[int], text: Generated) -> float:
    prefixes = [[*prompt, *text.tokens[:length]] for length in range(len(text.tokens))]
    logprobs_TV = logits(prefixes).log_softmax(dim=-1)
    return sum(row[token].item() for row, token in zip(logprobs_TV, text.tokens, strict=True))


@pytest.mark.parametrize("way", EVERY_WAY)
def test_finished_rows_are_not_computed_any_more(way: str, recompute_stepper: Any, toy_logits: Logits) -> None:
    options = EVERY_WAY[way]
    stepper = recompute_stepper(toy_logits, PROMPTS)
    items = generate(stepper, PROMPTS, options, _generators(PROMPTS))
    first, *later = stepper.sizes
    assert first == len(PROMPTS)
    assert later == sorted(later, reverse=True)
    if options.num_beams == 1:
        lengths = [len(text.tokens) for item in items for text in item]
        assert later == [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    else:
        assert all(size % options.num_beams == 0 for size in later)
        assert len(later) < options.max_new_tokens
        assert later[-1] < len(PROMPTS) * options.num_beams, "some item must be done before the last"


@pytest.mark.parametrize("way", [way for way, options in EVERY_WAY.items() if options.num_beams == 1])
def test_the_stream_is_the_text(way: str, recompute_stepper: Any, toy_logits: Logits) -> None:
    options = EVERY_WAY[way]
    stream = generate_stream(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, _generators(PROMPTS))
    rows: list[list[int | None]] = [[] for _ in range(len(PROMPTS) * options.num_captions)]
    while True:
        try:
            new = next(stream)
        except StopIteration as end:
            texts = [text for item in end.value for text in item]
            break
        for row, token in zip(rows, new, strict=True):
            row.append(token)
    for row, text in zip(rows, texts, strict=True):
        assert row == [*text.tokens, *[None] * (len(row) - len(text.tokens))]


def test_a_token_comes_before_the_next_one_is_computed(recompute_stepper: Any, toy_logits: Logits) -> None:
    stepper = recompute_stepper(toy_logits, PROMPTS)
    stream = generate_stream(stepper, PROMPTS, GREEDY)
    for calls in range(1, 4):
        next(stream)
        assert len(stepper.sizes) == calls


def test_no_call_for_a_token_after_the_last(recompute_stepper: Any, toy_logits: Logits) -> None:
    for options in (GenerationOptions(max_new_tokens=4), GenerationOptions(max_new_tokens=4, num_beams=3)):
        stepper = recompute_stepper(toy_logits, PROMPTS)
        generate(stepper, PROMPTS, options)
        assert len(stepper.sizes) == 4


def test_nothing_to_write(recompute_stepper: Any, toy_logits: Logits) -> None:
    stepper = recompute_stepper(toy_logits, PROMPTS)
    options = GenerationOptions(max_new_tokens=0, num_beams=3, num_captions=2)
    empty = Generated(tokens=(), logprob=0.0, finish_reason="length")
    assert generate(stepper, PROMPTS, options) == [[empty, empty]] * len(PROMPTS)
    assert generate(recompute_stepper(toy_logits, []), [], GREEDY) == []
    assert stepper.sizes == []


def test_draws_follow_the_distribution(recompute_stepper: Any) -> None:
    """100,000 draws of one token; each frequency within five standard deviations of its probability."""
    logits_V = torch.tensor([0.5, -1.0, 2.0, -math.inf, 1.0, 0.0])
    rounds, draws = 100, 1000
    options = GenerationOptions(max_new_tokens=1, temperature=0.7, top_k=4, num_captions=draws)
    generator = torch.Generator().manual_seed(1)
    counts: Counter[int] = Counter()
    for _ in range(rounds):
        stepper = recompute_stepper(lambda rows: logits_V.expand(len(rows), -1), [[1]])
        [texts] = generate(stepper, [[1]], options, [generator])
        counts.update(text.tokens[0] for text in texts)
    kept_V = torch.where(logits_V < 0.0, -math.inf, logits_V / 0.7).softmax(dim=-1)
    for token, probability in enumerate(kept_V.tolist()):
        deviation = math.sqrt(probability * (1 - probability) / (rounds * draws))
        assert abs(counts[token] / (rounds * draws) - probability) <= 5 * deviation
    assert set(counts) == {0, 2, 4, 5}


def test_a_seed_gives_its_draws_again(recompute_stepper: Any, toy_logits: Logits) -> None:
    options = replace(GREEDY, temperature=1.5)

    def draw(seed: int) -> list[list[Generated]]:
        return generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, _generators(PROMPTS, seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_items_with_equal_seeds_draw_alike_and_captions_of_one_item_do_not(
    recompute_stepper: Any, toy_logits: Logits
) -> None:
    options = replace(GREEDY, temperature=1.5, num_captions=4)
    prompts = [[5], [5]]
    generators = [torch.Generator().manual_seed(3) for _ in prompts]
    first, second = generate(recompute_stepper(toy_logits, prompts), prompts, options, generators)
    assert first == second
    assert len(set(first)) > 1


def test_a_vanishing_temperature_and_the_single_best_are_greedy(recompute_stepper: Any, toy_logits: Logits) -> None:
    expected = generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, GREEDY)
    for options in (replace(GREEDY, temperature=1e-5), replace(GREEDY, top_k=1), replace(GREEDY, top_p=1e-9)):
        drawn = generate(recompute_stepper(toy_logits, PROMPTS), PROMPTS, options, _generators(PROMPTS))
        assert drawn == expected


def test_beams_come_best_first_and_find_what_greedy_search_misses(recompute_stepper: Any) -> None:
    """0 is the likelier first token, but 1 has the likelier continuation."""

    def logits(rows: list[list[int]]) -> Tensor:
        after = {(): [0.6, 0.4, 0.0], (0,): [0.34, 0.33, 0.33], (1,): [0.05, 0.9, 0.05]}
        return torch.tensor([after[tuple(row)] for row in rows]).log()

    options = GenerationOptions(max_new_tokens=2, num_beams=2, num_captions=2)
    [texts] = generate(recompute_stepper(logits, [[]]), [[]], options)
    assert [text.tokens for text in texts] == [(1, 1), (0, 0)]
    assert texts[0].logprob == pytest.approx(math.log(0.4 * 0.9), abs=1e-5)
    [[greedy]] = generate(recompute_stepper(logits, [[]]), [[]], GenerationOptions(max_new_tokens=2))
    assert greedy.tokens == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=6, no_repeat_ngram_size=1),
        GenerationOptions(max_new_tokens=6, no_repeat_ngram_size=1, temperature=1.0),
        GenerationOptions(max_new_tokens=6, no_repeat_ngram_size=1, num_beams=5, num_captions=5),
        GenerationOptions(
            max_new_tokens=6,
            min_new_tokens=6,
            no_repeat_ngram_size=1,
            num_beams=5,
            num_captions=5,
            early_stopping=True,
            end_token_ids=(1,),
        ),
    ],
)
def test_a_vocabulary_that_runs_out_still_gives_full_texts(options: GenerationOptions, recompute_stepper: Any) -> None:
    """Three tokens, fewer than beams and steps: every token comes to be ruled out."""
    stepper = recompute_stepper(lambda rows: torch.tensor([[0.1, 2.0, 0.3]]).expand(len(rows), -1), [[0]])
    [texts] = generate(stepper, [[0]], options, [torch.Generator().manual_seed(1)])
    assert len(texts) == options.num_captions
    for text in texts:
        assert len(text.tokens) == 6
        assert math.isfinite(text.logprob)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_logits_that_are_no_numbers_are_an_error(way: str, value: float, recompute_stepper: Any) -> None:
    def logits(rows: list[list[int]]) -> Tensor:
        broken_RV = torch.zeros(len(rows), 30)
        broken_RV[-1, 4] = value
        return broken_RV

    with pytest.raises(ModelError, match="NaN"):
        generate(recompute_stepper(logits, PROMPTS), PROMPTS, EVERY_WAY[way], _generators(PROMPTS))
