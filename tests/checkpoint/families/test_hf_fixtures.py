"""The small transformers models that others are compared with: mistakes show on them, and variants are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf import FAMILIES, PROMPTS
from hf.build import build, opened
from hf.images import photos
from hf.layouts import variants
from hf.reference import NEW_TOKENS, prepare, reference, reference_logits

MORE = (7, 11, 13, 17)  # ids after the prompt, so that the decoder's own positions and mask count
# One of each way of seeing; the others take a minute.
QUICK = ("git", "vit-gpt2", "llava")
EVERY = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]
TILED = "<|im_start|>User:<image>Describe this image.<end_of_utterance>\nAssistant:"
# What is given to the processors of the families that have one which can be made here.
TEXTS = {
    "smolvlm": TILED,
    "idefics3": TILED,
    "llava": "USER: <image>\nDescribe this image. ASSISTANT:",
    "llava-siglip": "<|im_start|>user <image>\nDescribe this image.<|im_end|><|im_start|>assistant\n",
    "paligemma": "<image>caption en",
    "florence2": "<CAPTION>",
}
ROUNDED = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.mark.parametrize("family", EVERY)
def test_a_picture_moves_the_logits(built: Callable[..., Any], family: str) -> None:
    first, second = (
        reference_logits(built(family), image, PROMPTS[family][0], MORE).values_TV[-len(MORE) :] for image in photos(2)
    )
    assert (first - second).abs().amax(dim=-1).min() > 1e-2


@pytest.mark.parametrize("family", EVERY)
def test_captions_differ_and_some_end_early(captions: Callable[..., Any], family: str) -> None:
    for prompt in PROMPTS[family]:
        ids = captions(family, prompt).ids
        ended = [caption for caption in ids if len(caption) < NEW_TOKENS]
        assert 2 <= len(ended) < len(ids)
        assert len({tuple(caption) for caption in ids}) >= 4


@pytest.mark.parametrize("family", EVERY)
def test_logits_are_those_that_captions_are_made_from(
    built: Callable[..., Any], captions: Callable[..., Any], family: str
) -> None:
    made = built(family)
    for image, caption in zip(photos(20)[:3], captions(family, PROMPTS[family][0]).ids, strict=False):
        start = len(prepare(made, image, PROMPTS[family][0]).ids)
        logits = reference_logits(made, image, PROMPTS[family][0], caption)
        values_TV = logits.values_TV[start - 1 : -1]
        if family == "florence2":  # its first token is given, and none may come thrice as before
            continue
        assert values_TV.argmax(dim=-1).tolist() == caption


@pytest.mark.parametrize("family", EVERY)
def test_every_variant_is_the_same_model(built: Callable[..., Any], family: str, tmp_path: Path) -> None:
    made = built(family)
    image, prompt = photos(1)[0], PROMPTS[family][0]
    wanted_TV = reference_logits(made, image, prompt, MORE).values_TV
    names = {"source": lambda source, _: source} | variants(family)
    for name, rewrite in names.items():
        loaded = opened(family, rewrite(made.folder, tmp_path / name))
        if name in ROUNDED:
            moved = max(
                float((new - old).abs().max() / old.abs().max())
                for new, old in zip(loaded.model.state_dict().values(), made.model.state_dict().values(), strict=True)
            )
            assert 0 < moved <= ROUNDED[name], name
            continue
        torch.testing.assert_close(
            reference_logits(loaded, image, prompt, MORE).values_TV, wanted_TV, rtol=0, atol=0, msg=name
        )


@pytest.mark.parametrize("family", [every for every in EVERY if every.values[0] in TEXTS])
def test_inputs_are_those_of_the_processor(built: Callable[..., Any], family: str) -> None:
    made, prompt = built(family), PROMPTS[family][0]
    if family == "smolvlm":  # its own processor needs packages that tests lack
        pieces = {"image_processor": made.image_processor, "tokenizer": made.tokenizer, "image_seq_len": 4}
        processor = transformers.Idefics3Processor(**pieces)
    else:
        processor = transformers.AutoProcessor.from_pretrained(made.folder, backend="pil")
    for image in photos(4):
        given = processor(images=image, text=TEXTS[family], return_tensors="pt")
        for name, tensor in prepare(made, image, prompt).model.items():
            torch.testing.assert_close(tensor, given[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("family", ["git", pytest.param("blip", marks=pytest.mark.slow)])
def test_pictures_together_get_the_captions_that_they_get_alone(
    built: Callable[..., Any], captions: Callable[..., Any], family: str
) -> None:
    prompt = PROMPTS[family][1]
    assert reference(built(family), photos(20)[:4], prompt).ids == captions(family, prompt).ids[:4]


def test_the_same_seed_gives_the_same_model(built: Callable[..., Any], tmp_path: Path) -> None:
    again = build("git", tmp_path)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (built("git").folder / name).read_bytes() == (again.folder / name).read_bytes()
