"""Image and prompt to text: the Python face."""

import io
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.captioning.captioner import Caption
from mmt_cli.captioning.inference import inference
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, ModelError, UsageError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset

CONTEXT = 16
OPTIONS = GenerationOptions(max_new_tokens=5)


def _captioner(tools: ModuleType, name: str = "tiny") -> Captioner:
    """Strong random weights and a tokenizer of as many entries as the model has."""
    if name == "tiny":
        settings: dict[str, Any] = {"text.max_length": CONTEXT, "text.vocab_size": 290}
    else:
        settings = {**tools.SMALL["seed"], "vocab_size": 290}
    config = preset(name, settings)
    return Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs through the grass .", "Two dogs play in snow ."] * 4, 290),
        preprocessing=default_preprocessing(config),
        generation=OPTIONS,
    )


@pytest.fixture(scope="module", params=["tiny", "seed"])
def captioner(request: pytest.FixtureRequest, tools: ModuleType) -> Captioner:
    return _captioner(tools, request.param)


@pytest.fixture(scope="module")
def tiny(tools: ModuleType) -> Captioner:
    return _captioner(tools)


def _images(count: int = 5) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randint(0, 256, (6 * 9 * 3,), generator=generator, dtype=torch.uint8) for _ in range(count)]
    return [Image.frombytes("RGB", (9, 6), bytes(pixels.tolist())) for pixels in noise]


def _logprob(captioner: Captioner, image: Image.Image, caption: Caption, prompt: str | None) -> float:
    """Sum over the new tokens, each after one reading of everything before it."""
    ids, total = captioner.encode_prompt(prompt).ids, 0.0
    pixels = captioner.read(image).pixels_NCHW
    for token in caption.tokens:
        logits = captioner.model(torch.tensor([ids]), pixels)[0, -1]
        total += logits.log_softmax(dim=-1)[token].item()
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("prompt", [None, "A dog"])
def test_a_caption_is_the_prompt_and_the_new_tokens(captioner: Captioner, prompt: str | None) -> None:
    images = _images()
    captions = captioner.caption(images, prompt=prompt)
    words = captioner.tokenizer
    assert words is not None
    for image, caption in zip(images, captions, strict=True):
        assert caption.text == words.decode([*words.encode(prompt or ""), *caption.tokens])
        assert caption.text.startswith(prompt or "")
        assert caption.logprob == pytest.approx(_logprob(captioner, image, caption, prompt), abs=1e-3)
        ended = caption.tokens[-1] == words.eos_id
        assert caption.finish_reason == ("stop" if ended else "length")
        assert ended or len(caption.tokens) == 5
    assert len({round(caption.logprob, 2) for caption in captions}) == len(images)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"temperature": 2.0, "max_new_tokens": 7}], ids=["greedy", "beams", "sampling"]
)
def test_the_batch_size_changes_no_caption(captioner: Captioner, options: dict[str, Any]) -> None:
    images = _images()
    together = captioner.caption(images, prompt="A", **options)
    for size in (1, 2):
        apart = captioner.caption(images, prompt="A", batch_size=size, **options)
        assert [caption.tokens for caption in apart] == [caption.tokens for caption in together]


def test_paths_bytes_and_pictures_are_read_alike(tiny: Captioner, tmp_path: Path) -> None:
    picture = _images(1)[0]
    picture.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    picture.save(encoded, "png")
    captions = tiny.caption([picture, tmp_path / "a.png", str(tmp_path / "a.png"), encoded.getvalue()])
    assert len(set(captions)) == 1
    assert tiny.caption([]) == []
    with pytest.raises(ImageError):
        tiny.caption([picture, tmp_path / "none.png"])


def test_options_go_over_the_checkpoints_defaults(tiny: Captioner) -> None:
    images = _images(2)
    assert tiny.caption(images, num_beams=4, length_penalty=0.2) != tiny.caption(images)
    assert all(len(caption.tokens) == 2 for caption in tiny.caption(images, max_new_tokens=2, min_new_tokens=2))
    assert all(caption.tokens == () for caption in tiny.caption(images, max_new_tokens=0))
    with pytest.raises(UsageError, match="num_beams"):
        tiny.caption(images, num_beams=0)


def test_a_draw_depends_on_its_seed_and_not_on_its_batch(tiny: Captioner) -> None:
    pictures = [tiny.read(image) for image in _images(3)]
    options = replace(OPTIONS, temperature=3.0, num_captions=4)
    together = tiny.generate(pictures, options=options, seeds=[11, 12, 13])
    assert [len(item) for item in together] == [4, 4, 4]
    tokens = [caption.tokens for caption in together[1]]
    assert len(set(tokens)) == 4
    for seed in (12, 11):
        [alone] = tiny.generate(pictures[1:2], options=options, seeds=[seed])
        assert ([caption.tokens for caption in alone] == tokens) == (seed == 12)


def test_draws_come_best_first_each_with_its_own_log_probability(captioner: Captioner) -> None:
    images = _images(2)
    options = replace(OPTIONS, temperature=3.0, num_captions=6)
    items = captioner.generate([captioner.read(image) for image in images], options=options)
    for image, item in zip(images, items, strict=True):
        logprobs = [caption.logprob for caption in item]
        assert logprobs == sorted(logprobs, reverse=True)
        assert len(set(logprobs)) > 1
        for caption in item:
            assert caption.logprob == pytest.approx(_logprob(captioner, image, caption, None), abs=1e-3)
    best = captioner.caption(images, temperature=3.0, num_captions=6)
    assert best == [item[0] for item in items]


def test_beams_keep_the_order_of_their_scores(tiny: Captioner) -> None:
    """Which is not that of their log-probabilities where length counts."""
    pictures = [tiny.read(image) for image in _images(5)]
    ends = tuple(range(0, 290, 2))
    options = replace(OPTIONS, num_beams=5, num_captions=5, length_penalty=0.5, end_token_ids=ends, max_new_tokens=9)
    items = tiny.generate(pictures, options=options)
    for item in items:
        scores = [caption.logprob / len(caption.tokens) ** 0.5 for caption in item]
        assert scores == sorted(scores, reverse=True)
    logprobs = [[caption.logprob for caption in item] for item in items]
    assert any(values != sorted(values, reverse=True) for values in logprobs)


PROMPTS = [None, "A dog", "Two dogs play in", "A", "A dog"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_beams": 3},
        {"temperature": 3.0, "num_captions": 2},
        {"max_new_tokens": 30},
        {"max_length": 12, "min_length": 9},
        {"stop_loops": True, "max_new_tokens": 30},
    ],
    ids=["greedy", "beams", "sampling", "room", "totals", "loops"],
)
def test_a_batch_of_unlike_prompts_gives_each_image_what_it_gets_alone(
    captioner: Captioner, changes: dict[str, Any]
) -> None:
    pictures, options = [captioner.read(image) for image in _images()], replace(OPTIONS, **changes)
    together = captioner.generate(pictures, prompt=PROMPTS, options=options, seeds=range(5))
    for place, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        [alone] = captioner.generate([picture], prompt=prompt, options=options, seeds=[place])
        for one, other in zip(together[place], alone, strict=True):
            assert (one.text, one.tokens, one.finish_reason) == (other.text, other.tokens, other.finish_reason)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    with pytest.raises(UsageError, match="5 prompts, 4 images"):
        captioner.generate(pictures[:4], prompt=PROMPTS)


def test_items_of_one_likeness_have_prompts_of_one_length(captioner: Captioner) -> None:
    pictures = [captioner.read(image) for image in _images()]
    keys = [captioner.likeness(picture, prompt) for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    assert keys[1] == keys[4]
    assert len(set(keys)) == 4
    assert captioner.likeness(pictures[0], "dog") == captioner.likeness(pictures[1], "A") == keys[3]
    with pytest.raises(UsageError, match="the model's context is"):
        captioner.likeness(pictures[0], _words(captioner.model.config.text.max_length))


def test_images_seen_before_give_the_same_captions(captioner: Captioner) -> None:
    pictures = [captioner.read(image) for image in _images(2)]
    with torch.no_grad():
        by_hand = captioner.model.see(torch.cat([picture.pixels_NCHW for picture in pictures]))
    for seen in (captioner.see(pictures), by_hand):
        assert captioner.generate_from(seen, prompt="A") == captioner.generate(pictures, prompt="A")


def test_an_image_is_squashed_to_what_the_model_reads(tiny: Captioner) -> None:
    picture = tiny.read(Image.new("RGB", (50, 3), (255, 0, 128)))
    assert (picture.rows, picture.columns) == (0, 0)
    assert picture.pixels_NCHW.shape == (1, 3, 32, 32)
    assert picture.pixels_NCHW.dtype == torch.float32
    assert picture.pixels_NCHW[0, :, 0, 0].tolist() == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)


def test_the_tokenizers_end_token_ends_a_caption(tools: ModuleType) -> None:
    captioner = _captioner(tools, "seed")
    assert captioner.tokenizer is not None
    captioner.model.head.projection.bias[captioner.tokenizer.eos_id] = 100
    [caption] = captioner.caption(_images(1), prompt="A dog")
    assert (caption.text, caption.tokens, caption.finish_reason) == ("A dog", (captioner.tokenizer.eos_id,), "stop")


def test_another_end_token_can_be_given(tiny: Captioner) -> None:
    pictures = [tiny.read(image) for image in _images(1)]
    first = tiny.generate(pictures, options=replace(OPTIONS, min_new_tokens=5))[0][0].tokens[0]
    ended = tiny.generate(pictures, options=replace(OPTIONS, end_token_ids=(first,)))[0][0]
    assert (ended.tokens, ended.finish_reason) == ((first,), "stop")


def _words(count: int) -> str:
    """A text of as many tokens."""
    return " ".join(["dog"] * count)


def test_a_prompt_fills_the_context_up_to_the_last_place(captioner: Captioner) -> None:
    limit = captioner.model.config.text.max_length
    pictures = [captioner.read(image) for image in _images(2)]
    for length in (limit - 1, limit - 3):
        found = captioner.generate(pictures, prompt=_words(length), options=replace(OPTIONS, max_new_tokens=30))
        for item in found:
            assert item[0].finish_reason == "stop" or len(item[0].tokens) == min(30, limit - length)
    with pytest.raises(UsageError, match=rf"{limit + 1} tokens.*context is {limit}"):
        captioner.generate(pictures, prompt=_words(limit))


def test_a_model_in_training_captions_without_dropout_and_goes_back(tools: ModuleType) -> None:
    captioner = _captioner(tools, "seed")
    expected = captioner.caption(_images(2))
    captioner.model.train()
    captioner.model.vision.eval()
    modes = [module.training for module in captioner.model.modules()]
    assert captioner.caption(_images(2)) == expected
    assert [module.training for module in captioner.model.modules()] == modes
    with pytest.raises(RuntimeError), inference(captioner.model):
        raise RuntimeError
    assert [module.training for module in captioner.model.modules()] == modes


def _save(captioner: Captioner, folder: Path, **changes: Any) -> Path:
    parts = {name: getattr(captioner, name) for name in ("tokenizer", "preprocessing", "generation")}
    save_checkpoint(folder, captioner.model, **{**parts, "card": "", **changes})
    return folder


def test_a_loaded_captioner_writes_what_the_saved_one_did(captioner: Captioner, tmp_path: Path) -> None:
    folder = _save(captioner, tmp_path / "mine", generation=replace(OPTIONS, num_beams=2))
    loaded = Captioner.load(folder, device="cpu")
    assert loaded.caption(_images(), prompt="A") == captioner.caption(_images(), prompt="A", num_beams=2)
    assert (loaded.name, loaded.device.type, loaded.dtype) == ("mine", "cpu", torch.float32)
    assert loaded.fingerprint().startswith("mine@")
    assert (captioner.name, captioner.fingerprint()) == ("unsaved", "unsaved")


def test_half_precision_is_taken_when_asked_for(tiny: Captioner, tmp_path: Path) -> None:
    loaded = Captioner.load(_save(tiny, tmp_path / "mine"), device="cpu", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert len(loaded.caption(_images(2))) == 2


def test_a_tokenizer_can_be_lent(tiny: Captioner, tmp_path: Path) -> None:
    assert tiny.tokenizer is not None
    tiny.tokenizer.save(tmp_path / "words.json")
    folder = _save(tiny, tmp_path / "mine", tokenizer=None)
    lent = Captioner.load(folder, device="cpu", tokenizer=str(tmp_path / "words.json"))
    assert lent.caption(_images(2)) == tiny.caption(_images(2))
    with pytest.raises(ModelError, match=r"mine has none.*--tokenizer"):
        Captioner.load(folder, device="cpu").caption(_images(1))


def test_what_does_not_fit_is_refused_with_both_sizes(tiny: Captioner, tmp_path: Path) -> None:
    large = train_tokenizer([f"word{index}" for index in range(40)] * 4, 400)
    assert large.vocab_size > 290
    with pytest.raises(ModelError, match=rf"{large.vocab_size} entries, model 290"):
        Captioner.load(_save(tiny, tmp_path / "words", tokenizer=large), device="cpu")
    pixels = Preprocessing(height=32, width=44, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ModelError, match="patch_size 8, 32 x 44 pixels"):
        Captioner.load(_save(tiny, tmp_path / "pixels", preprocessing=pixels), device="cpu")
    with pytest.raises(UsageError, match="tpu"):
        Captioner.load(_save(tiny, tmp_path / "device"), device="tpu")
    with pytest.raises(UsageError, match="float8"):
        Captioner.load(_save(tiny, tmp_path / "dtype"), device="cpu", dtype="float8")


@pytest.mark.parametrize("kind", ["concat", "splice"])
def test_preprocessing_may_make_images_of_another_size_that_the_model_can_read(
    kind: str, tools: ModuleType, tmp_path: Path
) -> None:
    config = preset("tiny", {"fusion.kind": kind, "text.max_length": 80, "text.block.rope": "multimodal"})
    wide = replace(default_preprocessing(config), height=32, width=64)
    words = train_tokenizer(["a dog runs"], 262)
    save_checkpoint(
        tmp_path / "model",
        tools.build_model(config),
        tokenizer=words,
        preprocessing=wide,
        generation=GenerationOptions(),
        card="A model.",
    )
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    photo = Image.new("RGB", (50, 40), (200, 30, 30))
    image = captioner.see([captioner.read(photo)])
    assert (image.grid, image.x_BND.shape[1]) == ((4, 8), 32)
    words_alone = 1 + len(words.encode("a"))
    assert len(captioner.encode_prompt("a").ids) == words_alone + 32 * (kind == "splice")
    assert captioner.caption([photo], prompt="a", max_new_tokens=3)[0].tokens
