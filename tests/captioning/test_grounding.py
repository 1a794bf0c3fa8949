"""How much an image says for its caption, in bits."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.captioning import grounding
from mmt_cli.captioning.author import Caption
from mmt_cli.captioning.grounding import image_gains
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.decoding.score import score
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.tiling import Tiling
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.context import Images
from mmt_cli.model.presets import preset

PHOTOS = sorted((Path(__file__).parents[1] / "data").glob("*.jpg"))
OPTIONS = GenerationOptions(max_new_tokens=6)
WORDS = train_tokenizer(["A dog runs through the grass .", "Two dogs play in snow ."] * 4, 290)
PROMPTS = [None, "A dog", "A"]
KINDS: dict[str, dict[str, Any]] = {
    "concat": {},
    "cross": {"fusion": {"kind": "cross"}},
    "splice": {"fusion": {"kind": "splice"}, "text.max_length": 80},
    "bidirectional": {"fusion.visibility": "bidirectional", "vision.class_token": True},
}


def _captioner(tools: ModuleType, changes: dict[str, Any]) -> Captioner:
    config = preset("tiny", {"text.max_length": 24, "text.vocab_size": 290, **changes})
    return Captioner(
        model=tools.build_model(config),
        tokenizer=WORDS,
        preprocessing=replace(default_preprocessing(config), mean=(128 / 255,) * 3),  # a grey of whole samples
        generation=OPTIONS,
    )


@pytest.fixture(scope="module", params=KINDS)
def captioner(request: pytest.FixtureRequest, tools: ModuleType) -> Captioner:
    return _captioner(tools, KINDS[request.param])


def _pictures(captioner: Captioner, count: int = 3) -> list[Picture]:
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randint(0, 256, (6 * 9 * 3,), generator=generator, dtype=torch.uint8) for _ in range(count)]
    return [captioner.read(Image.frombytes("RGB", (9, 6), bytes(pixels.tolist()))) for pixels in noise]


def _grey(captioner: Captioner, size: tuple[int, int] = (9, 6)) -> Picture:
    how = captioner.preprocessing
    return captioner.read(Image.new("RGB", size, tuple(round(mean / how.rescale) for mean in how.mean)))


def _logprobs(
    captioner: Captioner, pictures: Sequence[Picture], texts: Sequence[Caption], prompts: Sequence[str | None]
) -> list[float]:
    """Log-probabilities of these texts behind these pictures."""
    asked = [
        captioner.encode_prompt(prompt, captioner.layout(picture))
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    with torch.inference_mode():
        stepper = captioner.author.stepper(asked, captioner.see(pictures), 30)
        return score(stepper, [caption.tokens for caption in texts])


@pytest.mark.parametrize("changes", [{}, {"num_beams": 3}, {"temperature": 2.0}], ids=["greedy", "beams", "sampling"])
def test_the_image_itself_scores_what_the_caption_was_written_with(
    captioner: Captioner, changes: dict[str, Any]
) -> None:
    pictures = _pictures(captioner)
    captions = [item[0] for item in captioner.generate(pictures, prompt=PROMPTS, options=replace(OPTIONS, **changes))]
    scored = _logprobs(captioner, pictures, captions, PROMPTS)
    assert scored == pytest.approx([caption.logprob for caption in captions], abs=1e-3)


def test_the_gain_is_in_bits_against_the_mean_colour(captioner: Captioner) -> None:
    pictures = _pictures(captioner)
    captions = captioner.generate(pictures, prompt=PROMPTS, options=replace(OPTIONS, num_beams=3, num_captions=3))
    gains = image_gains(captioner, pictures, captions, PROMPTS)
    assert [len(item) for item in gains] == [3, 3, 3]
    for rank in range(3):
        texts = [item[rank] for item in captions]
        blank = _logprobs(captioner, [_grey(captioner)] * 3, texts, PROMPTS)
        expected = [(text.logprob - logprob) / math.log(2) for text, logprob in zip(texts, blank, strict=True)]
        assert [item[rank] for item in gains] == pytest.approx(expected, abs=1e-2)
    assert max(abs(gain) for item in gains for gain in item) > 1


def test_a_gain_does_not_depend_on_the_batch(captioner: Captioner) -> None:
    pictures = _pictures(captioner)
    captions = captioner.generate(pictures, prompt=PROMPTS)
    together = image_gains(captioner, pictures, captions, PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        here = slice(place, place + 1)
        [[alone]] = image_gains(captioner, pictures[here], captions[here], [prompt])
        assert [alone] == pytest.approx(together[place], abs=1e-2)
    assert image_gains(captioner, [], [], []) == []


def test_a_grey_image_gains_nothing(captioner: Captioner) -> None:
    grey = _grey(captioner)
    [[gain]] = image_gains(captioner, [grey], captioner.generate([grey], prompt="A"), "A")
    assert gain == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("fusion", [{"kind": "cross", "gate": "tanh"}, {"kind": "gated_cross", "gate": "tanh"}])
def test_a_model_that_does_not_look_gains_nothing(fusion: dict[str, Any], tools: ModuleType) -> None:
    captioner = _captioner(tools, {"fusion": fusion})
    pictures = _pictures(captioner)
    captions = captioner.generate(pictures, prompt="A")
    assert max(abs(gain) for [gain] in image_gains(captioner, pictures, captions, "A")) > 0.5
    for name, parameter in captioner.model.named_parameters():
        if name.endswith("gate.strength"):
            parameter.zero_()
    captions = captioner.generate(pictures, prompt="A")
    assert image_gains(captioner, pictures, captions, "A") == [[pytest.approx(0, abs=1e-4)]] * 3


def test_a_caption_without_a_token_gains_nothing(captioner: Captioner) -> None:
    pictures = _pictures(captioner, 2)
    empty = captioner.generate(pictures[:1], options=replace(OPTIONS, max_new_tokens=0))
    written = captioner.generate(pictures[1:])
    gains = image_gains(captioner, pictures, [*empty, *written], None)
    assert gains[0] == [0.0]
    assert gains[1] == pytest.approx(image_gains(captioner, pictures[1:], written, None)[0], abs=1e-2)


def test_a_blank_image_is_seen_once_a_layout(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = _captioner(tools, KINDS["splice"] | {"text.max_length": 200})
    tiling = Tiling(kind="idefics3", longest_edge=64)
    captioner.preprocessing = replace(captioner.preprocessing, tiling=tiling)
    sizes = [(9, 6), (64, 64), (64, 32), (64, 60)]
    pictures = [captioner.read(Image.new("RGB", size, (200, 10, 60))) for size in sizes]
    layouts = [captioner.layout(picture) for picture in pictures]
    captions = captioner.generate(pictures, prompt="A")
    seen: list[tuple[int, ...]] = []
    see = captioner.model.see

    def counted(pixels: torch.Tensor | Images) -> Any:
        if isinstance(pixels, Images):
            seen.append(pixels.count_B)
        return see(pixels)

    monkeypatch.setattr(captioner.model, "see", counted)
    first = image_gains(captioner, pictures, captions, "A")
    assert sorted(seen) == sorted((layout.tiles,) for layout in set(layouts))
    assert image_gains(captioner, pictures, captions, "A") == first
    assert len(seen) == len(set(layouts))
    blank = _logprobs(captioner, [_grey(captioner, size) for size in sizes], [item[0] for item in captions], ["A"] * 4)
    expected = [(item[0].logprob - logprob) / math.log(2) for item, logprob in zip(captions, blank, strict=True)]
    assert [gain for [gain] in first] == pytest.approx(expected, abs=1e-2)


def test_few_blank_images_are_kept(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "_MOST_BLANKS", 1)
    captioner = _captioner(tools, {})
    for side in (32, 40, 32):
        captioner.preprocessing = replace(captioner.preprocessing, height=side, width=side)
        pictures = _pictures(captioner, 1)
        image_gains(captioner, pictures, captioner.generate(pictures), None)
        assert len(grounding._blanks[captioner]) == 1


def test_captions_of_the_bundled_model_fit_their_photos_and_no_others() -> None:
    mini = Captioner.load("mini", device="cpu")
    pictures = [mini.read(photo) for photo in PHOTOS]
    captions = mini.generate(pictures, prompt="A", options=replace(mini.generation, num_beams=1))
    gains = [gain for [gain] in image_gains(mini, pictures, captions, "A")]
    assert min(gains) > 3
    turned = [*pictures[1:], pictures[0]]
    logprobs = _logprobs(mini, turned, [item[0] for item in captions], ["A"] * len(turned))
    wrong = [[replace(item[0], logprob=logprob)] for item, logprob in zip(captions, logprobs, strict=True)]
    others = [gain for [gain] in image_gains(mini, turned, wrong, "A")]
    assert sum(others) / len(others) < sum(gains) / len(gains) - 5
    assert sum(other < gain for other, gain in zip(others, gains, strict=True)) >= 11
