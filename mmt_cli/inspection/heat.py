"""Pictures of where a model looked: heat over the photo.

H height and W width of a map in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from mmt_cli.inspection.attention import Sight
from mmt_cli.inspection.geometry import Box, fitted, seen, spread, tile_boxes

_TOP = 0.995  # of all words' values: a single hot cell would leave all else dark
_LEAST_TOP = 2.0  # times the even spread: attention that is all but even shall not look as if it chose
_COLOUR, _LIGHT = 0.4, 0.7  # what the photo keeps of its own beneath the heat
_UNSEEN = 0.35  # of the light that the rest has, where the model saw nothing
_OPAQUE, _SOLID = 215, 190  # how much of the photo is hidden, of 255, from which level on
_GROUND = (70, 70, 70, 255)  # beneath the scale
# From cold to hot; readable by people who tell red from green badly, and bright at its end.
_STOPS = ((0, (40, 8, 90)), (90, (150, 30, 120)), (170, (240, 100, 50)), (255, (255, 240, 130)))


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Maps of all words over one photo, in one scale.

    Attributes:
        photo: upright, RGB.
        seen: the part of it that the model saw.
        levels: for each word how hot each pixel is, mode L, of the photo's size.
        top: what 255 stands for, in times the density of evenly spread attention.
    """

    photo: Image.Image
    seen: Box
    levels: tuple[Image.Image, ...]
    top: float


def heat_of(sight: Sight, photo: Image.Image, largest: int) -> Heat:
    """Return the maps of a caption's words.

    Args:
        sight: where the model looked.
        photo: upright, RGB, of any size.
        largest: pixels of the longer side of the pictures.
    """
    picture = sight.script.picture
    boxes = tile_boxes(photo.width, photo.height, picture)
    width, height = fitted(photo.width, photo.height, largest)
    maps = [spread(one.weights_TRC, boxes, sight.cells, height=height, width=width) for one in sight.sights]
    top = _top_of(maps)
    return Heat(
        photo=photo.resize((width, height), Image.Resampling.LANCZOS),
        seen=seen(boxes),
        levels=tuple(_level(map_HW, top) for map_HW in maps),
        top=top,
    )


def _top_of(maps: Sequence[Tensor]) -> float:
    if not maps:
        return _LEAST_TOP
    values = torch.stack(list(maps)).flatten()
    # Beyond some millions torch.quantile refuses.
    kept = values[:: max(1, len(values) // 1_000_000)]
    return max(float(kept.quantile(_TOP)), _LEAST_TOP)


def _level(map_HW: Tensor, top: float) -> Image.Image:
    height, width = map_HW.shape
    samples = (map_HW * (255 / top)).round().clamp(0, 255).to(torch.uint8)
    return Image.frombytes("L", (width, height), bytes(samples.flatten().tolist()))


def beneath(heat: Heat) -> Image.Image:
    """Return the photo as it stands beneath the heat: paler, darker, and darker still where the model saw nothing."""
    photo = ImageEnhance.Brightness(ImageEnhance.Color(heat.photo).enhance(_COLOUR)).enhance(_LIGHT)
    width, height = photo.size
    at = (
        round(heat.seen.left * width),
        round(heat.seen.top * height),
        round(heat.seen.right * width),
        round(heat.seen.bottom * height),
    )
    if at == (0, 0, width, height):
        return photo
    dark = ImageEnhance.Brightness(photo).enhance(_UNSEEN)
    dark.paste(photo.crop(at), at[:2])
    return dark


def glow(level: Image.Image) -> Image.Image:
    """Return a map in colour, mode RGBA: the hotter the more opaque."""
    red, green, blue = (level.point(_ramp(channel)) for channel in range(3))
    alpha = level.point([round(_OPAQUE * min(1.0, value / _SOLID)) for value in range(256)])
    return Image.merge("RGBA", (red, green, blue, alpha))


def scale(width: int, height: int) -> Image.Image:
    """Return a bar from cold to hot, RGB."""
    ramp = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Image.alpha_composite(Image.new("RGBA", ramp.size, _GROUND), glow(ramp)).convert("RGB")


def lit(photo: Image.Image, level: Image.Image) -> Image.Image:
    """Return a photo that stands beneath the heat with one word's heat over it, RGB."""
    return Image.alpha_composite(photo.convert("RGBA"), glow(level)).convert("RGB")


def _ramp(channel: int) -> list[int]:
    values: list[int] = []
    for (start, low), (end, high) in pairwise(_STOPS):
        steps = end - start
        values += [round(low[channel] + (high[channel] - low[channel]) * step / steps) for step in range(steps)]
    return [*values, _STOPS[-1][1][channel]]
