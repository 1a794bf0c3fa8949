"""From any of Pillow's pixel modes to opaque 8-bit RGB, the way a viewer would show it.

A pixel mode that has no such reading raises ValueError with the words "not supported".
"""

from typing import Any, cast

from PIL import Image, ImageMath, ImageOps

_WHITE_16_BIT = 65535
_WHITE_12_BIT = 4095
_FLOAT_WHITES = (1, 255, _WHITE_16_BIT)
_LOW_BIT_STEPS = {"L;2": 85, "L;4": 17}
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def raw_mode(image: Image.Image) -> str:
    """How samples are stored in a file not yet decoded, such as `RGB;16B`; empty where that is not known."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else None
    stored = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return stored if isinstance(stored, str) else ""


def opaque_rgb(image: Image.Image, stored: str) -> Image.Image:
    """Return `image` in mode RGB, transparency laid over white; `image` itself where nothing is to be done.

    Args:
        image: A loaded image of any mode, with the metadata of its file in `info`.
        stored: Its `raw_mode` before it was loaded.

    Raises:
        ValueError: the samples have no known scale, or Pillow cannot convert the mode.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey8_from_16_bit(image, white=_WHITE_12_BIT if stored == "I;12" else _WHITE_16_BIT)
    elif image.mode == "F":
        image = _grey8_from_float(image)
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = _with_8_bit_transparency(image, stored).convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _with_8_bit_transparency(image: Image.Image, stored: str) -> Image.Image:
    """Bring a PNG's transparent colour to 8 bits: Pillow does so with the pixels but not with this."""
    colour = image.info.get("transparency")
    scaled: int | tuple[int, ...]
    if image.mode == "L" and isinstance(colour, int) and stored in _LOW_BIT_STEPS:
        scaled = colour * _LOW_BIT_STEPS[stored]
    elif image.mode == "RGB" and isinstance(colour, tuple) and stored.startswith("RGB;16"):
        scaled = tuple(sample >> 8 for sample in colour)
    else:
        return image
    image = image.copy()
    image.info["transparency"] = scaled
    return image


def _grey8_from_16_bit(image: Image.Image, white: int) -> Image.Image:
    """Scale 0..white to 0..255 (Pillow would clip at 255); a PNG's transparent value becomes an alpha channel."""
    wide = image.convert("I")
    brightest = cast(tuple[int, int], wide.getextrema())[1]
    if brightest > _WHITE_16_BIT:
        raise ValueError(f"integers above 16 bits are not supported, its samples reach {brightest}")
    grey = wide.point(lambda sample: sample * (255 / white) + 0.5).convert("L")
    grey = _with_zero_dark(grey, image)
    hidden = grey.info.pop("transparency", None)
    if not isinstance(hidden, int) or not 0 <= hidden <= _WHITE_16_BIT:
        return grey
    alpha = wide.point([255] * hidden + [0] + [255] * (_WHITE_16_BIT - hidden), "L")
    return Image.merge("LA", (grey, alpha))


def _grey8_from_float(image: Image.Image) -> Image.Image:
    """Scale to 0..255 from the smallest usual range (to 1, 255 or 65535) that holds it; NaN and negatives are black."""
    # NaN is not greater than 0, so `max` gives 0 for it.
    raised: Image.Image = ImageMath.lambda_eval(lambda scope: scope["max"](scope["image"], 0.0), image=image)
    brightest = cast(tuple[float, float], raised.getextrema())[1]
    white = next((white for white in _FLOAT_WHITES if brightest <= white), None)
    if white is None:
        raise ValueError(f"floats above {_WHITE_16_BIT} are not supported, its samples reach {brightest:g}")
    return _with_zero_dark(raised.point(lambda sample: sample * (255 / white) + 0.5).convert("L"), image)


def _with_zero_dark(grey: Image.Image, source: Image.Image) -> Image.Image:
    """Invert a TIFF that stores white as 0; Pillow does it for 8 bits but neither for 16 nor for floats."""
    white_is_zero = getattr(source, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    return ImageOps.invert(grey) if white_is_zero else grey
