"""From an upright RGB image to the pixels that a model reads, with Pillow and torch alone.

Shape suffixes: C channels (red, green, blue), H height, W width.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from mmt_cli.errors import ModelError

Resample = Literal["bilinear", "bicubic"]
_RESAMPLING: dict[Resample, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MAX_SIDE = 8192
_MAX_LEVEL = 1000
_MIN_STD = 1e-6  # a smaller one makes pixels infinite in float32
_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a checkpoint wants its images; the content of `preprocessor.json`.

    `height` and `width` are in pixels; `mean` and `std` are per channel (red, green, blue) on the scale 0..1.

    Raises:
        ModelError: a value of the wrong type or out of bounds, named with the bound.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            side = getattr(self, name)
            if type(side) is not int or not 1 <= side <= _MAX_SIDE:
                raise _bad_value(name, side, f"a whole number from 1 to {_MAX_SIDE}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != _CHANNELS or not all(map(_is_in_range, values)):
                raise _bad_value(name, values, f"{_CHANNELS} numbers from {-_MAX_LEVEL} to {_MAX_LEVEL}")
        if min(self.std) < _MIN_STD:
            raise _bad_value("std", self.std, f"{_CHANNELS} numbers of at least {_MIN_STD}")
        if self.resample not in get_args(Resample):
            raise _bad_value("resample", self.resample, " or ".join(get_args(Resample)))

    def to_json(self) -> dict[str, Any]:
        """Return the values under their names, ready for JSON."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build from the values of `preprocessor.json`.

        Raises:
            ModelError: not an object, unknown or missing keys (named), or bad values.
        """
        if not isinstance(data, dict):
            raise ModelError(f"preprocessor.json holds a {type(data).__name__}, not an object; check the checkpoint")
        fields = dataclasses.fields(cls)
        unknown = sorted(str(key) for key in data.keys() - {field.name for field in fields})
        missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in data]
        for what, names in (("unknown", unknown), ("missing", missing)):
            if names:
                raise ModelError(f"preprocessor.json has {what} keys ({', '.join(names)}); check the checkpoint")
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in data.items()}
        return cls(**values)


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return pixels_CHW, float32: `image` (mode RGB) squashed to height x width, scaled to 0..1, less mean, over std.

    The aspect ratio is not kept. Pillow's resize widens its filter when it shrinks, so the result is antialiased.
    """
    assert image.mode == "RGB", image.mode
    size = (preprocessing.width, preprocessing.height)
    resized = image.resize(size, _RESAMPLING[preprocessing.resample])
    samples_HWC = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    samples_HWC = samples_HWC.view(preprocessing.height, preprocessing.width, _CHANNELS)
    pixels_CHW = samples_HWC.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean_C11 = torch.tensor(preprocessing.mean, dtype=torch.float32).view(_CHANNELS, 1, 1)
    std_C11 = torch.tensor(preprocessing.std, dtype=torch.float32).view(_CHANNELS, 1, 1)
    return pixels_CHW.sub_(mean_C11).div_(std_C11)


def _is_in_range(value: object) -> bool:
    """Whether `value` is a number in range; NaN is not, for it compares false."""
    return type(value) in (int, float) and abs(cast(float, value)) <= _MAX_LEVEL


def _bad_value(name: str, value: object, allowed: str) -> ModelError:
    shown = repr(value)[:80]
    return ModelError(f"{name} of the image preprocessing is {shown}, not {allowed}; check preprocessor.json")
