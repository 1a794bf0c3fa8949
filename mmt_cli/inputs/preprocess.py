"""From an upright RGB image to the pixels that a model reads, with Pillow and torch alone.

The arithmetic is that of transformers' PIL-backed image processors, bit for bit.

Shape suffixes: N images that stand for one picture, C channels (red, green, blue), H height, W width.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from mmt_cli.errors import ImageError
from mmt_cli.inputs.tiling import Tiling, cut
from mmt_cli.inputs.values import MAX_PIXELS, bad_value, check_flag, check_keys, check_whole

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_MAX_LEVEL = 1000
_MIN_SCALE = 1e-6  # a smaller standard deviation makes pixels infinite in float32
_CHANNELS = 3
_MAX_VALUE = 255  # of an 8-bit sample
_SCALED_AT_ONCE = 8  # images


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a checkpoint wants its images; the content of `preprocessor.json`.

    An image is padded to a square (if `square_fill`), resized, cropped (if resized to another size), scaled by
    `rescale`, less `mean`, over `std`.

    Attributes:
        height: of each image that the model reads, in pixels.
        width: of each image that the model reads, in pixels.
        mean: per channel (red, green, blue), on the scale that `rescale` makes, usually 0..1.
        std: per channel, on that scale.
        resample: the filter of all resizing.
        rescale: what 8-bit samples are multiplied by.
        shortest_edge: the shorter side becomes so many pixels and the aspect ratio stays; the centre is cropped.
        squash: the image becomes (height, width) pixels, whatever its aspect ratio; the centre is cropped. Where this
            and `shortest_edge` are None, it is squashed to `height` x `width`.
        square_fill: the colour (0..255 per channel) that pads an image to a square, in whose middle it stands.
        tiling: how a large image becomes several, each of `height` x `width`.
        draft: whether a JPEG may be decoded at a reduced size first, which is faster and changes pixels a little.

    Raises:
        ModelError: a value of the wrong type or out of bounds, named with the bound.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Resample = "bicubic"
    rescale: float = 1 / _MAX_VALUE
    shortest_edge: int | None = None
    squash: tuple[int, int] | None = None
    square_fill: tuple[int, int, int] | None = None
    tiling: Tiling | None = None
    draft: bool = True

    def __post_init__(self) -> None:
        check_whole("height", self.height)
        check_whole("width", self.width)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != _CHANNELS or not all(map(_is_in_range, values)):
                raise bad_value(name, values, f"{_CHANNELS} numbers from {-_MAX_LEVEL} to {_MAX_LEVEL}")
        if min(self.std) < _MIN_SCALE:
            raise bad_value("std", self.std, f"{_CHANNELS} numbers of at least {_MIN_SCALE}")
        if self.resample not in get_args(Resample):
            raise bad_value("resample", self.resample, " or ".join(get_args(Resample)))
        if not _is_in_range(self.rescale) or self.rescale < _MIN_SCALE:
            raise bad_value("rescale", self.rescale, f"a number from {_MIN_SCALE} to {_MAX_LEVEL}")
        check_flag("draft", self.draft)
        self._check_geometry()

    def _check_geometry(self) -> None:
        if self.shortest_edge is not None:
            check_whole("shortest_edge", self.shortest_edge)
        if self.squash is not None:
            if not isinstance(self.squash, tuple) or len(self.squash) != 2:
                raise bad_value("squash", self.squash, "two whole numbers (height, width)")
            for side in self.squash:
                check_whole("squash", side)
        if self.square_fill is not None and not _is_colour(self.square_fill):
            raise bad_value("square_fill", self.square_fill, f"{_CHANNELS} whole numbers from 0 to {_MAX_VALUE}")
        first_steps = [self.shortest_edge, self.squash, self.tiling]
        if sum(step is not None for step in first_steps) > 1 or (self.tiling and self.square_fill):
            ways = ("shortest_edge", "squash", "square_fill", "tiling")
            given = ", ".join(name for name in ways if getattr(self, name) is not None)
            raise bad_value("the way to resize", given, "one way")
        if self.tiling is not None:
            if not isinstance(self.tiling, Tiling):
                raise bad_value("tiling", self.tiling, "an object or null")
            self.tiling.check_tile(self.height, self.width)

    def without_split(self) -> Self:
        """Return the same with each image kept whole: one tensor of height x width for any image."""
        if self.tiling is None:
            return self
        return dataclasses.replace(self, tiling=dataclasses.replace(self.tiling, split=False))

    def to_json(self) -> dict[str, Any]:
        """Return the values under their names, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(item) if isinstance(item, tuple) else item for name, item in values.items()}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build from the values of `preprocessor.json`.

        Raises:
            ModelError: not an object, unknown or missing keys (named), or bad values.
        """
        found = check_keys(cls, data, "preprocessor.json")
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in found.items()}
        if values.get("tiling") is not None:
            values["tiling"] = Tiling.from_json(values["tiling"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as the model reads it, but for the scaling of its samples.

    Samples take a quarter of the memory of pixels, and pictures wait in line for the model; they are scaled where the
    model is, all of a batch at once.

    Attributes:
        samples_NHWC: uint8; where the picture is split, its `rows` x `columns` tiles, row by row, and then the whole of
            it; where it is not, rows and columns are 0 and the whole is all there is.
        rows: of tiles.
        columns: of tiles.
        how: what made it.
    """

    samples_NHWC: Tensor
    rows: int
    columns: int
    how: Preprocessing

    def __len__(self) -> int:
        return len(self.samples_NHWC)

    @property
    def pixels_NCHW(self) -> Tensor:  # noqa: N802 — the suffix is its shape
        """float32: what the model reads."""
        return normalise(self.samples_NHWC, self.how)

    @property
    def thumbnail(self) -> bool:
        """Whether the last image is the whole picture behind its tiles."""
        return 0 < self.rows * self.columns < len(self)


def to_picture(image: Image.Image, preprocessing: Preprocessing) -> Picture:
    """Return what the model reads for `image` (mode RGB), cut into tiles where `preprocessing` says so.

    Pillow's resize widens its filter when it shrinks, so the result is antialiased.

    Raises:
        ImageError: so long and thin that resizing it would take more memory than is sane.
    """
    assert image.mode == "RGB", image.mode
    how = preprocessing
    if how.tiling is None:
        images, rows, columns = [_one_image(image, how)], 0, 0
    else:
        images, rows, columns = cut(
            image, how.tiling, how.height, how.width, lambda part, height, width: _resize(part, height, width, how)
        )
    # Bytes alone: torch would start a pool of threads of its own in each thread that decodes.
    samples = torch.frombuffer(bytearray().join(part.tobytes() for part in images), dtype=torch.uint8)
    samples_NHWC = samples.view(len(images), how.height, how.width, _CHANNELS)
    return Picture(samples_NHWC=samples_NHWC, rows=rows, columns=columns, how=how)


def normalise(samples_NHWC: Tensor, how: Preprocessing) -> Tensor:
    """Return pixels_NCHW, float32, for 8-bit samples, on their device.

    The scaling is done in float64 and all that follows in float32, as in transformers.
    """
    device = samples_NHWC.device
    double = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    mean_C11 = torch.tensor(how.mean, dtype=torch.float32, device=device).view(_CHANNELS, 1, 1)
    std_C11 = torch.tensor(how.std, dtype=torch.float32, device=device).view(_CHANNELS, 1, 1)
    count, height, width, channels = samples_NHWC.shape
    pixels_NCHW = torch.empty((count, channels, height, width), device=device)
    # A few at a time: in float64 the tiles of one picture can take half a gigabyte.
    for some in range(0, count, _SCALED_AT_ONCE):
        part_NHWC = samples_NHWC[some : some + _SCALED_AT_ONCE]
        scaled_NCHW = part_NHWC.permute(0, 3, 1, 2).to(double, memory_format=torch.contiguous_format).mul_(how.rescale)
        pixels_NCHW[some : some + _SCALED_AT_ONCE].copy_(scaled_NCHW).sub_(mean_C11).div_(std_C11)
    return pixels_NCHW


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return pixels_CHW, float32: what the model reads for `image` (mode RGB), with preprocessing that splits nothing.

    Raises:
        ImageError: so long and thin that resizing it would take more memory than is sane.
    """
    assert preprocessing.tiling is None or not preprocessing.tiling.split, preprocessing.tiling
    return to_picture(image, preprocessing).pixels_NCHW[0]


def _one_image(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Return `image` padded, resized and cropped, height x width."""
    if how.square_fill is not None:
        image = _pad_to_square(image, how.square_fill)
    if how.shortest_edge is not None:
        height, width = _with_shortest_edge(image, how.shortest_edge)
    else:
        height, width = how.squash or (how.height, how.width)
    resized = _resize(image, height, width, how)
    if (height, width) == (how.height, how.width):
        return resized
    # Rounded down below zero too, as transformers does; what lies outside of the image becomes black.
    left, top = (width - how.width) // 2, (height - how.height) // 2
    return resized.crop((left, top, left + how.width, top + how.height))


def _with_shortest_edge(image: Image.Image, edge: int) -> tuple[int, int]:
    """Return the (height, width) in which the shorter side is `edge`, the longer one rounded down."""
    longer = int(edge * max(image.size) / min(image.size))
    return (longer, edge) if image.width <= image.height else (edge, longer)


def _pad_to_square(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    _check_size(image, side, side)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resize(image: Image.Image, height: int, width: int, how: Preprocessing) -> Image.Image:
    _check_size(image, height, width)
    return image.resize((width, height), Image.Resampling[how.resample.upper()])


def _check_size(image: Image.Image, height: int, width: int) -> None:
    """Refuse to make an image that takes very much memory; Pillow first makes one of the new width and old height."""
    if width * max(height, image.height) > MAX_PIXELS:
        what = f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}"
        raise ImageError("too_large", f"{what}, by way of more than {MAX_PIXELS} pixels; cut it to a usual shape")


def _is_in_range(value: object) -> bool:
    """Whether `value` is a number in range; NaN is not, for it compares false."""
    return type(value) in (int, float) and abs(cast(float, value)) <= _MAX_LEVEL


def _is_colour(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != _CHANNELS:
        return False
    return all(type(level) is int and 0 <= level <= _MAX_VALUE for level in value)
