"""The image preprocessing that a Hugging Face checkpoint asks for, read from its JSON.

Only the image processors of the families that `mmt` reads are known. Files from the hub are sparse: what they leave out
is filled in from the defaults of the processor's class in transformers 5, in transformers' own spelling.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tiling import MAX_TILES, Tiling
from mmt_cli.inputs.values import bad_value, check_flag, check_whole

_CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF_COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_NEAREST, _LANCZOS, _BILINEAR, _BICUBIC = range(4)
_SQUARE_224 = {"height": 224, "width": 224}

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "default_to_square": True,
    "resample": _BICUBIC,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
}
_CLIP: dict[str, Any] = _CLIP_COLOURS | {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": _SQUARE_224,
}
_IDEFICS3: dict[str, Any] = _HALF_COLOURS | {
    "resample": _LANCZOS,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Blip": _CLIP_COLOURS | {"size": {"height": 384, "width": 384}},
    "CLIP": _CLIP,
    "DeiT": _HALF_COLOURS | {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": _SQUARE_224},
    "GotOcr2": _CLIP_COLOURS | {"size": {"height": 384, "width": 384}, "min_patches": 1, "max_patches": 12},
    "Idefics3": _IDEFICS3,
    "Llava": _CLIP,
    "Siglip": _HALF_COLOURS | {"size": _SQUARE_224, "default_to_square": False},
    "SmolVLM": _IDEFICS3,
    "ViT": _HALF_COLOURS | {"size": _SQUARE_224, "resample": _BILINEAR},
}
_TYPE_NAME = re.compile(r"(\w+?)(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?")


def preprocessing_from_hf(data: Mapping[str, Any]) -> Preprocessing:
    """Return how transformers' PIL-backed image processor treats an opaque RGB image.

    Keys that transformers itself does not look at are passed over, `null` counts as left out. GotOcr2 is taken as
    InternVL's processor calls it: with `crop_to_patches`, whatever the file says.

    Args:
        data: the content of `preprocessor_config.json`, or of `processor_config.json` with `image_processor` in it.

    Raises:
        ModelError: an unknown type, a bad value, or options with which images would come out in many sizes.
    """
    inner = data.get("image_processor", data)
    if not isinstance(inner, Mapping):
        raise bad_value("image_processor", inner, "an object")
    kind = _kind(inner)
    values = _COMMON | _DEFAULTS[kind] | {key: value for key, value in inner.items() if value is not None}
    if not check_flag("do_resize", values["do_resize"]):
        raise ModelError(
            f"do_resize is false, while a {kind} model reads images of one size ({shown(values['size'])}); set it true"
        )
    if kind in ("Idefics3", "SmolVLM"):
        geometry = _idefics3(values)
    elif kind == "GotOcr2":
        geometry = _internvl(values)
    else:
        geometry = _resize_and_crop(values, pads_to_square=kind == "Llava")
    return Preprocessing(**geometry, **_levels(values), resample=_resample(values["resample"]), draft=False)


def _kind(data: Mapping[str, Any]) -> str:
    """Return the processor's type without what its name says of generation and backend."""
    name = data.get("image_processor_type") or data.get("feature_extractor_type")
    match = _TYPE_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[1] not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ModelError(f"image processor of an unknown type ({shown(name)}, known: {known}); use another checkpoint")
    return match[1]


def _levels(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return how samples are scaled; a step that is switched off is one that changes nothing."""
    rescales = check_flag("do_rescale", values["do_rescale"])
    normalises = check_flag("do_normalize", values["do_normalize"])
    return {
        "rescale": values["rescale_factor"] if rescales else 1.0,
        "mean": _per_channel(values["image_mean"]) if normalises else (0.0,) * 3,
        "std": _per_channel(values["image_std"]) if normalises else (1.0,) * 3,
    }


def _per_channel(value: object) -> Any:
    """Return a list as a tuple and a number three times; anything else as it is, for `Preprocessing` to refuse."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) * 3 if type(value) in (int, float) else value


def _resample(value: object) -> Any:
    if type(value) is not int or not 0 <= value < len(_RESAMPLES):
        raise bad_value("resample", value, f"a whole number from 0 to {len(_RESAMPLES) - 1}")
    return _RESAMPLES[value]


def _resize_and_crop(values: Mapping[str, Any], *, pads_to_square: bool) -> dict[str, Any]:
    """Return the fields of `Preprocessing` for a resize with or without a crop of the centre."""
    size = _size("size", values["size"], square=check_flag("default_to_square", values["default_to_square"]))
    crop = None
    if check_flag("do_center_crop", values["do_center_crop"]):
        crop = _height_and_width("crop_size", _size("crop_size", values.get("crop_size"), square=True))
    fill = None
    if check_flag("do_pad", values["do_pad"]):
        if pads_to_square:
            fill = _fill(values["image_mean"])
        elif values.get("pad_size") is not None:
            raise bad_value("do_pad", True, f"false or without pad_size ({shown(values['pad_size'])})")
    if set(size) == {"shortest_edge"}:
        if crop is None:
            raise bad_value("size", size, "height and width, as images of one size need while do_center_crop is false")
        return {"height": crop[0], "width": crop[1], "shortest_edge": size["shortest_edge"], "square_fill": fill}
    squash = _height_and_width("size", size)
    if crop in (None, squash):
        return {"height": squash[0], "width": squash[1], "square_fill": fill}
    return {"height": crop[0], "width": crop[1], "squash": squash, "square_fill": fill}


def _idefics3(values: Mapping[str, Any]) -> dict[str, Any]:
    side = _longest_edge("max_image_size", values["max_image_size"])
    split = check_flag("do_image_splitting", values["do_image_splitting"])
    tiling = Tiling(kind="idefics3", split=split, longest_edge=_longest_edge("size", values["size"]))
    return {"height": side, "width": side, "tiling": tiling}


def _internvl(values: Mapping[str, Any]) -> dict[str, Any]:
    size = _size("size", values["size"], square=check_flag("default_to_square", values["default_to_square"]))
    height, width = _height_and_width("size", size)
    most = check_whole("max_patches", values["max_patches"], MAX_TILES)
    least = check_whole("min_patches", values["min_patches"], most)
    tiling = Tiling(kind="internvl", min_tiles=least, max_tiles=most)
    return {"height": height, "width": width, "tiling": tiling if most > 1 else None}


def _size(name: str, value: object, *, square: bool) -> dict[str, int]:
    """Return a size as an object: older files hold a number or [height, width]."""
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if not isinstance(value, Mapping):
        raise bad_value(name, value, "an object, a whole number or [height, width]")
    return {str(key): check_whole(name, side) for key, side in value.items() if side is not None}


def _height_and_width(name: str, size: Mapping[str, int]) -> tuple[int, int]:
    if set(size) != {"height", "width"}:
        raise bad_value(name, size, "height and width")
    return size["height"], size["width"]


def _longest_edge(name: str, value: object) -> int:
    size = _size(name, value, square=True)
    if set(size) != {"longest_edge"}:
        raise bad_value(name, size, "longest_edge alone")
    return size["longest_edge"]


def _fill(mean: object) -> Any:
    """Return the mean as an 8-bit colour, which Llava's processor pads with; whatever else as it is, to be refused."""
    levels = _per_channel(mean)
    if isinstance(levels, tuple) and all(type(level) in (int, float) and 0 <= level <= 1 for level in levels):
        return tuple(int(level * 255) for level in levels)
    return levels
