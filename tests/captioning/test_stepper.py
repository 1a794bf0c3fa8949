"""Both steppers give the logits of one reading from the start, whatever decoding does with their rows.

B items, R rows, V vocabulary.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.captioning.stepper import CachedStepper, RecomputeStepper, build_stepper, pad
from mmt_cli.decoding.generate import Generated, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

PROMPTS = [[3, 14, 15], [9], [26, 5, 35, 8, 9]]
NOISE = 1e-4
# The last token of the vocabulary is the placeholder of splice models.
GREEDY = GenerationOptions(max_new_tokens=9, end_token_ids=(1, 2, 3, 4, 5, 6), suppress_tokens=(96,))
WAYS = {
    "greedy": GREEDY,
    "filtered": replace(GREEDY, repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=4),
    "sampling": replace(GREEDY, temperature=2.0, top_k=40, num_captions=2),
    "beams": replace(GREEDY, num_beams=4, num_captions=3, length_penalty=0.6),
    "beams-early": replace(GREEDY, num_beams=3, early_stopping=True, no_repeat_ngram_size=1),
}


def _image(model: MultimodalTransformer, tools: ModuleType, count: int = 3) -> ImageTokens:
    image: ImageTokens = model.see(tools.random_pixels(model.config, count))
    return image


def _read_each(model: MultimodalTransformer, image: ImageTokens, rows: list[list[int]]) -> Tensor:
    """Logits after each row, read by itself from the start."""
    return torch.cat([model.read(torch.tensor([row]), image[i : i + 1])[:, -1] for i, row in enumerate(rows)])


def _both(model: MultimodalTransformer) -> list[type[Any]]:
    return [RecomputeStepper, CachedStepper] if model.config.cacheable else [RecomputeStepper]


def test_the_quickest_stepper_that_is_exact_is_built(model: MultimodalTransformer, tools: ModuleType) -> None:
    stepper = build_stepper(model, _image(model, tools), PROMPTS, 5)
    assert isinstance(stepper, CachedStepper if model.config.cacheable else RecomputeStepper)


def test_every_step_gives_the_logits_of_one_reading(model: MultimodalTransformer, tools: ModuleType) -> None:
    """Rows of unlike length, each with its own image, multiplied, mixed and dropped as beam search does."""
    for kind in _both(model):
        image, rows = _image(model, tools), [list(ids) for ids in PROMPTS]
        stepper = kind(model, image, PROMPTS, 6)
        logits = stepper.start()
        assert logits.dtype == torch.float32
        for turn, kept in enumerate([None, [0, 0, 1, 1, 2, 2], [1, 0, 3, 2, 5, 5], [5, 0, 1], [2, 1, 0], [1]]):
            if kept is not None:
                stepper.reorder(torch.tensor(kept))
                image, rows = image[torch.tensor(kept)], [list(rows[row]) for row in kept]
                logits = logits[kept]
            assert (logits - _read_each(model, image, rows)).abs().max() <= NOISE
            tokens = tools.random_ids(len(rows), 1, seed=turn)[:, 0]
            logits = stepper.step(tokens)
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
            assert (logits - _read_each(model, image, rows)).abs().max() <= NOISE


def _generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _same(one: list[list[Generated]], other: list[list[Generated]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert [text.tokens for text in a] == [text.tokens for text in b]
        assert [text.logprob for text in a] == pytest.approx([text.logprob for text in b], abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_decoding_writes_the_same_with_and_without_a_cache(
    cacheable_model: MultimodalTransformer, tools: ModuleType, way: str
) -> None:
    image, options = _image(cacheable_model, tools), WAYS[way]
    found = [
        generate(kind(cacheable_model, image, PROMPTS, 9), PROMPTS, options, _generators([7, 8, 9]))
        for kind in (CachedStepper, RecomputeStepper)
    ]
    _same(*found)
    assert len({text.logprob for item in found[0] for text in item}) > 1


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_writes_what_each_image_gets_alone(model: MultimodalTransformer, tools: ModuleType, way: str) -> None:
    image, options = _image(model, tools), WAYS[way]
    together = generate(build_stepper(model, image, PROMPTS, 9), PROMPTS, options, _generators([7, 8, 9]))
    for row, prompt in enumerate(PROMPTS):
        stepper = build_stepper(model, image[row : row + 1], [prompt], 9)
        _same(generate(stepper, [prompt], options, _generators([7 + row])), together[row : row + 1])


def test_greedy_decoding_is_the_best_token_of_one_reading_at_a_time(
    model: MultimodalTransformer, tools: ModuleType
) -> None:
    image = _image(model, tools)
    options = GenerationOptions(max_new_tokens=6, suppress_tokens=(96,))
    items = generate(build_stepper(model, image, PROMPTS, 6), PROMPTS, options)
    rows = [list(ids) for ids in PROMPTS]
    for _ in range(6):
        best = _read_each(model, image, rows)[:, :96].argmax(dim=-1).tolist()
        rows = [[*row, token] for row, token in zip(rows, best, strict=True)]
    written = [[*prompt, *item[0].tokens] for prompt, item in zip(PROMPTS, items, strict=True)]
    assert written == rows


def test_rows_are_padded_behind_and_marked() -> None:
    ids, valid = pad([[5, 6, 7], [8]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert valid is not None
    assert valid.tolist() == [[True, True, True], [True, False, False]]
    ids, valid = pad([[5, 6], [8, 9]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [8, 9]]
    assert valid is None
