"""Images changed a little each time they are learned from, and captions that stay true of them.

What is drawn depends on seed, epoch and example alone: not on the process, the thread or what was drawn before.
"""

import math
import random
import re
from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from mmt_cli.training.order import mixed_seed

SMALLEST_CROP = 0.6  # of the image's area
_STRETCH = 4 / 3  # largest change of the ratio of its sides
_JITTER = 0.2  # largest change of brightness, contrast and saturation, as a part of each
# The shortest side a crop can have, as a part of the image's.
SHORTEST_SIDE = math.sqrt(SMALLEST_CROP / _STRETCH)

_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happens to one image: sizes and places are parts of its width and height."""

    width: float = 1.0
    height: float = 1.0
    left: float = 0.0
    top: float = 0.0
    mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the changed image; the size is the crop's."""
        if self.width < 1 or self.height < 1:
            width, height = (max(1, round(whole * part)) for whole, part in zip(image.size, self._parts, strict=True))
            left, top = round(self.left * (image.width - width)), round(self.top * (image.height - height))
            image = image.crop((left, top, left + width, top + height))
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        factors = (self.brightness, self.contrast, self.saturation)
        for enhancer, factor in zip(_ENHANCERS, factors, strict=True):
            if factor != 1:
                image = enhancer(image).enhance(factor)
        return image

    @property
    def _parts(self) -> tuple[float, float]:
        return self.width, self.height


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
UNCHANGED = Change()


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The changes of a run.

    `crop` cuts 60 to 100 % of the area out, its sides' ratio changed by up to 4/3; `flip` mirrors every second image;
    `colour` changes brightness, contrast and saturation by up to 20 % each.
    """

    kinds: Collection[str]
    seed: int

    def draw(self, epoch: int, index: int) -> Change:
        """Return what happens to an example in an epoch."""
        draw = random.Random(mixed_seed(self.seed, epoch, index))  # noqa: S311 — no secret
        # All numbers are drawn whatever the kinds are, so that one kind more leaves the others as they were.
        area, stretch, left, top, side, *colours = (draw.random() for _ in range(8))
        changes: dict[str, float | bool] = {}
        if "crop" in self.kinds:
            area = SMALLEST_CROP + (1 - SMALLEST_CROP) * area
            ratio = _STRETCH ** (2 * stretch - 1)
            width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
            changes |= {"width": width, "height": height, "left": left, "top": top}
        if "flip" in self.kinds:
            changes["mirrored"] = side < 0.5
        if "colour" in self.kinds:
            names = ("brightness", "contrast", "saturation")
            changes |= {name: 1 + _JITTER * (2 * colour - 1) for name, colour in zip(names, colours, strict=True)}
        return Change(**changes)  # type: ignore[arg-type]


def mirror(caption: str) -> str:
    """Return the caption with the words "left" and "right" changed over, in the same case."""
    return _SIDE.sub(lambda found: _like(_SIDES[found[0].lower()], found[0]), caption)


def _like(word: str, model: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
