"""Whether a folder that transformers wrote gives transformers' logits and tokens here."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hf import PROMPTS
from hf.build import opened
from hf.built import Built
from hf.images import photos
from hf.layouts import Rewrite, variants
from hf.reference import NEW_TOKENS, Reference, reference, reference_logits
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.model import packing
from mmt_cli.model.config import ModelConfig

MOST = 1e-4  # difference of logits; NaN is no less than it
# Packed kernels and MKL's differ in last bits, of which norms of this small tower make 5e-4. With MKL on both sides the
# bound above holds.
MOST_PACKED = {"florence2": 1e-3}
MORE = (7, 11, 13, 17)  # ids that a cache reads one by one behind the prompt
ROUNDED = ("bfloat16", "float16")  # variants that hold other weights than the model they were made of
BEAMS = {"num_beams": 3}
ALONE = 6  # pictures that are captioned one at a time


# Files that differ only in how numbers or settings are stored, which every family has in common with GIT.
_IN_COMMON = ("preprocessor-only", "processor-only", "bin-shards", "float16")


def files(*families: str) -> list[Any]:
    """Return (family, name of a variant) for parametrize; what families have in common is slow but for GIT."""
    return [
        pytest.param(family, name, marks=pytest.mark.slow if name in _IN_COMMON and family != "git" else ())
        for family in families
        for name in variants(family)
    ]


def loaded(folder: Path) -> Captioner:
    return Captioner.load(folder, device="cpu", dtype="float32")


def loaded_plain(folder: Path) -> Captioner:
    """Return the same with the kernels that transformers uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "can_pack", lambda _: False)
        return loaded(folder)


def check(built: Built, captions: Callable[..., Any], prompt: str | None) -> None:
    """Compare logits on 3 pictures, and 20 captions in large batches, greedy and with beams; a few alone, too."""
    captioner, images = loaded(built.folder), photos(20)
    plain = loaded_plain(built.folder)
    for image in images[:3]:
        check_logits(built, plain, prompt, image)
        check_logits(built, captioner, prompt, image, MOST_PACKED.get(built.family, MOST))
    for options in ({}, BEAMS):
        theirs = captions(built.family, prompt, **options)
        assert len(set(map(tuple, theirs.ids))) >= 4, "captions that do not depend on the picture prove nothing"
        for count, batch_size in ((20, 8), (ALONE, 1)):
            check_tokens(captioner, images[:count], prompt, _first(theirs, count), batch_size=batch_size, **options)


def check_variant(built: Built, captions: Callable[..., Any], name: str, rewrite: Rewrite, folder: Path) -> None:
    """Compare logits on 2 pictures and 4 captions each, for the model in files as others write them."""
    rewrite(built.folder, folder)
    captioner, images, prompt = loaded(folder), photos(4), PROMPTS[built.family][0]
    rounded, plain = name in ROUNDED, loaded_plain(folder)
    model = opened(built.family, folder) if rounded else built
    for image in images[:2]:
        check_logits(model, plain, prompt, image)
        check_logits(model, captioner, prompt, image, MOST_PACKED.get(built.family, MOST))
    for options in ({}, BEAMS):
        if rounded:
            theirs = reference(model, images, prompt, together=True, **options)
        else:
            every = captions(built.family, prompt, **options)  # whose first pictures are the same
            theirs = _first(every, len(images))
        check_tokens(captioner, images, prompt, theirs, batch_size=8, **options)


def check_built(built: Built, prompt: str | None, count: int = 2) -> None:
    """Compare logits and greedy captions of a few pictures, for a model with settings of its own."""
    captioner, images = loaded(built.folder), photos(count)
    for image in images:
        check_logits(built, captioner, prompt, image)
    check_tokens(captioner, images, prompt, reference(built, images, prompt), batch_size=count)


def spelt_out(config: ModelConfig) -> ModelConfig:
    """Return the config with the heads that it leaves to be worked out, which transformers writes down."""
    block = config.text.block
    block = dataclasses.replace(block, num_kv_heads=block.kv_heads, head_dim=block.head_width)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, block=block))


def check_logits(
    built: Built, captioner: Captioner, prompt: str | None, image: Image.Image, most: float = MOST
) -> None:
    """Compare ids and logits at every place of the prompt, read at once, and of a few ids more, read one by one."""
    picture = captioner.read(image)
    asked = captioner.encode_prompt(prompt, captioner.layout(picture))
    theirs, longer = (reference_logits(built, image, prompt, more) for more in ((), MORE))
    assert list(asked.ids) == theirs.ids
    assert list(asked.encoder_ids or ()) == theirs.encoder_ids
    model, ids_BT = captioner.model, torch.tensor([asked.ids])
    with torch.inference_mode():
        seen = captioner.see([picture])
        if asked.encoder_ids is not None:
            seen = model.ask(torch.tensor([asked.encoder_ids]), seen)
        assert _apart(model.read(ids_BT, seen)[0], theirs.values_TV) <= most
        logits_BV, cache = model.prefill(ids_BT, seen, capacity=ids_BT.shape[1] + len(MORE))
        steps = [logits_BV]
        for token in MORE:
            steps.append(model.step(torch.tensor([[token]]), cache))
            cache.advance(1)
    assert _apart(torch.cat(steps), longer.values_TV[-len(steps) :]) <= most


def check_tokens(
    captioner: Captioner, images: Sequence[Image.Image], prompt: str | None, theirs: Reference, **options: Any
) -> None:
    """Compare the captions' tokens, and the answers' texts."""
    ours = captioner.caption(images, prompt=prompt, max_new_tokens=NEW_TOKENS, **options)
    assert [list(caption.tokens) for caption in ours] == theirs.ids
    if captioner.source is not None and captioner.source.family.answers:
        assert [caption.text for caption in ours] == [text.strip() for text in theirs.texts]


def _first(found: Reference, count: int) -> Reference:
    return Reference(found.ids[:count], found.texts[:count])


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference; of logits beyond 10, which float32 rounds more coarsely, that share of it."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item() / 10)
