"""Greedy and beam search against transformers' `generate`, token by token, over random settings."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from mmt_cli.decoding.filters import History, apply_filters, build_filters
from mmt_cli.decoding.generate import Generated, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.decoding.search import BeamItem, Candidate, Sampler

SETTINGS = 90
Logits = Callable[[list[list[int]]], Tensor]


def _setting(seed: int, num_beams: int | None = None) -> tuple[GenerationOptions, list[list[int]]]:
    choice = random.Random(seed)
    beams = num_beams or choice.randint(2, 5)
    maximum = choice.choice([1, 3, 8, 14, 25, 25])
    options = GenerationOptions(
        max_new_tokens=maximum,
        min_new_tokens=choice.choice([0, 0, 0, min(3, maximum)]),
        num_beams=beams,
        length_penalty=choice.choice([-1.0, 0.0, 0.3, 1.0, 2.0]),
        early_stopping=choice.choice([False, True, "never"]),
        repetition_penalty=choice.choice([1.0, 1.0, 0.8, 1.2, 1.6]),
        no_repeat_ngram_size=choice.randint(0, 3),
        num_captions=choice.randint(1, beams),
        end_token_ids=tuple(choice.sample(range(30), choice.choice([0, 1, 2, 6, 8]))),
    )
    length = choice.randint(1, 4)
    prompts = [[choice.randrange(30) for _ in range(length)] for _ in range(choice.randint(1, 3))]
    return options, prompts


def _transformers(model: GPT2LMHeadModel, options: GenerationOptions, prompts: list[list[int]]) -> Any:
    return model.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
        do_sample=False,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        num_return_sequences=options.num_captions,
        eos_token_id=list(options.end_token_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )


def _stripped(ids: list[int], options: GenerationOptions) -> tuple[int, ...]:
    """Generated ids up to the first end token: what follows it is padding."""
    for place, token in enumerate(ids):
        if token in options.end_token_ids:
            return tuple(ids[: place + 1])
    return tuple(ids)


def _sums(
    model: GPT2LMHeadModel, prompt: list[int], text: Generated, options: GenerationOptions
) -> tuple[float, float]:
    """The text's log-probability under the model, and its filtered score of beam search, from one forward pass."""
    with torch.inference_mode():
        logits_TV = model(torch.tensor([[*prompt, *text.tokens]])).logits[0, len(prompt) - 1 : -1]
    logprob = score = 0.0
    history = History([prompt], torch.device("cpu"))
    for token, logprobs_V in zip(text.tokens, logits_TV.log_softmax(dim=-1), strict=True):
        logprob += logprobs_V[token].item()
        score += apply_filters(build_filters(options), logprobs_V[None], history)[0, token].item()
        history.append(torch.tensor([token]))
    return logprob, score


def _check(model: GPT2LMHeadModel, logits: Logits, stepper: Any, seed: int, num_beams: int | None) -> list[Generated]:
    options, prompts = _setting(seed, num_beams)
    theirs = _transformers(model, options, prompts)
    items = generate(stepper(logits, prompts), prompts, options)
    assert [len(item) for item in items] == [options.num_captions] * len(prompts)
    texts = [text for item in items for text in item]
    expected = [_stripped(ids[len(prompts[0]) :], options) for ids in theirs.sequences.tolist()]
    assert [text.tokens for text in texts] == expected, options
    for number, text in enumerate(texts):
        logprob, score = _sums(model, prompts[number // options.num_captions], text, options)
        assert text.logprob == pytest.approx(logprob, abs=1e-3)
        assert text.finish_reason == ("stop" if text.tokens[-1] in options.end_token_ids else "length")
        if options.num_beams > 1:
            normalised = score / len(text.tokens) ** options.length_penalty
            assert theirs.sequences_scores[number].item() == pytest.approx(normalised, rel=1e-3, abs=1e-3)
    return texts


def test_beam_search_equals_transformers(gpt2: GPT2LMHeadModel, gpt2_logits: Logits, recompute_stepper: Any) -> None:
    texts = [
        text for seed in range(SETTINGS) for text in _check(gpt2, gpt2_logits, recompute_stepper, seed, num_beams=None)
    ]
    assert len({text.tokens for text in texts}) > SETTINGS, "too few different texts to tell much"
    assert len({len(text.tokens) for text in texts if text.finish_reason == "stop"}) > 10
    assert sum(text.finish_reason == "stop" for text in texts) > len(texts) / 5


def test_greedy_search_equals_transformers(gpt2: GPT2LMHeadModel, gpt2_logits: Logits, recompute_stepper: Any) -> None:
    texts = [text for seed in range(60) for text in _check(gpt2, gpt2_logits, recompute_stepper, seed, num_beams=1)]
    assert len({len(text.tokens) for text in texts if text.finish_reason == "stop"}) > 6


END = 9
ENDS_BELOW = [Candidate(-1.4, -0.2, 0, 3), Candidate(-1.5, -0.3, 0, END), Candidate(-1.6, -0.3, 1, 4)]
ENDS_ABOVE = [Candidate(-1.5, -0.3, 0, END), Candidate(-1.7, -0.5, 0, 3), Candidate(-1.8, -0.5, 1, 4)]


@pytest.mark.parametrize(
    ("second", "length_penalty", "early_stopping", "decided"),
    [
        (ENDS_BELOW, 0.0, False, False),  # -1.4 is better than -1.5
        (ENDS_BELOW, 0.0, True, True),
        (ENDS_BELOW, -1.0, "never", False),  # 2 * -1.4 is better than 2 * -1.5; 10 * -1.4 would not be
        (ENDS_ABOVE, 0.0, "never", True),  # -1.7 is no better than -1.5
        (ENDS_ABOVE, -1.0, "never", True),
        (ENDS_ABOVE, 1.0, False, True),  # -1.7 / 2 is no better than -1.5 / 2
        (ENDS_ABOVE, 1.0, "never", False),  # -1.7 / 10 is
    ],
)
def test_an_item_is_done_when_no_open_beam_can_win(
    second: list[Candidate], length_penalty: float, early_stopping: Any, decided: bool
) -> None:
    options = GenerationOptions(
        num_beams=2,
        max_new_tokens=10,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        end_token_ids=(END,),
    )
    item = BeamItem(options)
    item.advance([Candidate(-0.5, -0.5, 0, END), Candidate(-1.2, -1.2, 0, 1), Candidate(-1.3, -1.3, 0, 2)])
    assert not item.done, "one finished text is not two"
    item.advance(second)
    assert item.done == decided
    assert [beam.tokens for beam in item.finished] == [(END,), (1, END)]
    assert [beam.tokens for beam in item.beams] == [(1, 3), (2, 4)]


def test_a_caption_draws_the_same_when_others_of_its_item_have_finished() -> None:
    scores_RV = torch.zeros(3, 1000)

    def draw(rows: list[int]) -> list[int]:
        sampler = Sampler([torch.Generator().manual_seed(2)], num_captions=3)
        return [token for _ in range(3) for token in sampler(scores_RV[rows], rows).tolist()]

    assert draw([0, 2]) == [token for place, token in enumerate(draw([0, 1, 2])) if place % 3 != 1]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_the_outermost_random_numbers_draw_no_token_that_is_ruled_out(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), number))
    sampler = Sampler([torch.Generator()], num_captions=1)
    scores_RV = torch.tensor([[float("-inf"), 1.3, 0.2, float("-inf"), 2.1, float("-inf")]])
    assert sampler(scores_RV, [0]).item() == (1 if number == 0.0 else 4)
