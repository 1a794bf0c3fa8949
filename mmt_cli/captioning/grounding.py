"""How much an image says for its caption: whether the model looked, or wrote what it would have written anyway."""

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from mmt_cli.captioning.author import Caption, alike
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.prompts import Prompts, encode_each
from mmt_cli.decoding.score import score
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.prompt import Layout, Prompt
from mmt_cli.model.context import Images, ImageTokens

_MOST_BLANKS = 8  # layouts that are kept: a large model's image tokens take 10 to 50 MB each
_blanks: WeakKeyDictionary[Captioner, dict[Layout, ImageTokens]] = WeakKeyDictionary()


def image_gains(
    captioner: Captioner, pictures: Sequence[Picture], captions: Sequence[Sequence[Caption]], prompts: Prompts
) -> list[list[float]]:
    """Return by how many bits each caption is more likely with its image than with a blank one.

    The blank image has the size and the layout of the image and one colour, the mean that the preprocessing takes off:
    what the tower reads are zeros. The captions' tokens are read behind it one by one, as they were written.

    Args:
        captioner: what wrote the captions; its weights are those of its first call here.
        pictures: one an item.
        captions: those of each item.
        prompts: what they were written for; one for all, or one an item.

    Raises:
        ModelError: the model gave logits that are NaN or infinite.
    """
    layouts = [captioner.layout(picture) for picture in pictures]
    encoded = encode_each(prompts, layouts, captioner.encode_prompt)
    rows = [
        (layout, prompt, caption)
        for layout, prompt, item in zip(layouts, encoded, captions, strict=True)
        for caption in item
    ]
    blank = [0.0] * len(rows)  # what a caption without tokens keeps
    for layout, places in alike(layout for layout, _, _ in rows).items():
        written = [place for place in places if rows[place][2].tokens]
        if written:
            texts = [(prompt, caption.tokens) for _, prompt, caption in (rows[place] for place in written)]
            for place, logprob in zip(written, _blank_logprobs(captioner, layout, texts), strict=True):
                blank[place] = logprob
    logprobs = iter(blank)
    return [[(caption.logprob - next(logprobs)) / math.log(2) for caption in item] for item in captions]


def _blank_logprobs(
    captioner: Captioner, layout: Layout, texts: Sequence[tuple[Prompt, tuple[int, ...]]]
) -> list[float]:
    """Return how likely each of these texts is behind its prompt and a blank image."""
    with inference(captioner.model):
        blank = _blank_image(captioner, layout)
        image = blank[torch.zeros(len(texts), dtype=torch.long, device=captioner.device)]
        longest = max(len(tokens) for _, tokens in texts)
        stepper = captioner.author.stepper([prompt for prompt, _ in texts], image, longest)
        return score(stepper, [tokens for _, tokens in texts])


def _blank_image(captioner: Captioner, layout: Layout) -> ImageTokens:
    kept = _blanks.setdefault(captioner, {})
    if layout not in kept:
        if len(kept) == _MOST_BLANKS:
            del kept[next(iter(kept))]
        how, channels = captioner.preprocessing, captioner.model.config.vision.channels
        tiles_NCHW = torch.zeros(
            layout.tiles, channels, how.height, how.width, device=captioner.device, dtype=captioner.dtype
        )
        whole = how.tiling is None
        pixels = tiles_NCHW if whole else Images(tiles_NCHW=tiles_NCHW, count_B=(layout.tiles,))
        kept[layout] = captioner.model.see(pixels)
    return kept[layout]
