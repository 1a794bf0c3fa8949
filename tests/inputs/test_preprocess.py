"""From an image to the tensor that a model reads, and the checked values of `preprocessor.json`."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from mmt_cli.errors import ModelError
from mmt_cli.inputs.preprocess import Preprocessing, to_pixels

VALUES: dict[str, Any] = {"height": 4, "width": 6, "mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)}


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def test_pixels_are_chw_float32_scaled_and_normalised_per_channel() -> None:
    pixels_CHW = to_pixels(halves(6, 4), Preprocessing(**VALUES))
    assert (pixels_CHW.shape, pixels_CHW.dtype) == ((3, 4, 6), torch.float32)
    assert pixels_CHW.is_contiguous()
    red, green, blue = pixels_CHW
    torch.testing.assert_close(red, torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]]).expand(4, 6))
    torch.testing.assert_close(green, torch.full((4, 6), -1.0))
    torch.testing.assert_close(blue, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]).expand(4, 6))


def test_rows_and_columns_stand_where_the_image_has_them() -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 1), (0, 255, 0))
    pixels_CHW = to_pixels(image, Preprocessing(height=2, width=3, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert pixels_CHW.nonzero().tolist() == [[1, 1, 2]]


def test_image_is_squashed_to_height_and_width() -> None:
    pixels_CHW = to_pixels(halves(60, 10), Preprocessing(**VALUES))
    assert pixels_CHW.shape == (3, 4, 6)
    assert pixels_CHW[0, 0, 0] == 1
    assert pixels_CHW[0, 0, -1] == -1


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_shrinking_is_antialiased(resample: str) -> None:
    stripes = Image.new("L", (64, 64))
    stripes.putdata([255 * (x % 2) for _ in range(64) for x in range(64)])
    grey = Preprocessing(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3, resample=resample)
    pixels_CHW = to_pixels(stripes.convert("RGB"), grey)
    assert (pixels_CHW[:, 1:-1, 1:-1] - 0.5).abs().max() < 0.02


def test_resample_chooses_the_filter_and_bicubic_is_the_default() -> None:
    image = halves(16, 16)
    both = {
        name: to_pixels(image, Preprocessing(**VALUES | {"width": 40}, resample=name))
        for name in ("bilinear", "bicubic")
    }
    expected = image.resize((40, 4), Image.Resampling.BILINEAR).getpixel((19, 0))[0] / 255 * 2 - 1
    assert both["bilinear"][0, 0, 19].item() == pytest.approx(expected, abs=1e-6)
    assert not torch.equal(both["bilinear"], both["bicubic"])
    assert torch.equal(both["bicubic"], to_pixels(image, Preprocessing(**VALUES | {"width": 40})))


def test_pixels_do_not_share_memory_and_the_image_stays() -> None:
    image = halves(6, 4)
    before = image.tobytes()
    first = to_pixels(image, Preprocessing(**VALUES))
    first.zero_()
    assert to_pixels(image, Preprocessing(**VALUES))[0, 0, 0] == 1
    assert image.tobytes() == before


def test_json_round_trip_through_text() -> None:
    preprocessing = Preprocessing(**VALUES, resample="bilinear")
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    assert preprocessing.to_json() == {
        "height": 4,
        "width": 6,
        "mean": [0.5, 0.25, 0.0],
        "std": [0.5, 0.25, 1.0],
        "resample": "bilinear",
    }


def test_resample_may_be_left_out_of_json() -> None:
    data = Preprocessing(**VALUES).to_json()
    del data["resample"]
    assert Preprocessing.from_json(data).resample == "bicubic"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"crop": 1, "Size": 2}, "Size, crop"),
        ({"height": 0}, "height"),
        ({"height": 8193}, "8193"),
        ({"width": -1}, "width"),
        ({"width": 4.0}, "width"),
        ({"width": "4"}, "width"),
        ({"width": True}, "width"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"mean": [0.5, 0.5, None]}, "mean"),
        ({"mean": [0.5, 0.5, True]}, "mean"),
        ({"mean": [0.5, 0.5, math.nan]}, "mean"),
        ({"mean": [0.5, 0.5, math.inf]}, "mean"),
        ({"mean": [0.5, 0.5, 10**400]}, "mean"),
        ({"std": [0.5, 0.5, 0.0]}, "std"),
        ({"std": [0.5, -0.5, 0.5]}, "std"),
        ({"std": [0.5, 0.5, 1e-300]}, "std"),
        ({"resample": "lanczos"}, "lanczos"),
        ({"resample": ["bicubic"]}, "resample"),
    ],
)
def test_bad_values_are_refused_and_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        Preprocessing.from_json(Preprocessing(**VALUES).to_json() | change)
    assert "\n" not in str(caught.value)
    assert "preprocessor.json" in str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ModelError, match=r"missing keys \(width, mean\)"):
        Preprocessing.from_json({"height": 4, "std": [1, 1, 1]})


@pytest.mark.parametrize("data", [None, [], "height", 3])
def test_json_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ModelError, match="not an object"):
        Preprocessing.from_json(data)


def test_bounds_themselves_are_allowed() -> None:
    assert Preprocessing(**VALUES | {"height": 1, "width": 8192}).width == 8192


def test_values_cannot_be_changed_and_are_given_by_name() -> None:
    with pytest.raises(AttributeError):
        Preprocessing(**VALUES).height = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Preprocessing(*VALUES.values())  # type: ignore[misc]


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from PIL import Image
from mmt_cli.inputs.preprocess import Preprocessing, to_pixels
preprocessing = Preprocessing(height=2, width=2, mean=(0.0,) * 3, std=(1.0,) * 3)
print(to_pixels(Image.new("RGB", (3, 3), "white"), preprocessing).sum().item())
"""


def test_works_where_numpy_is_not_installed() -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_NUMPY]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "12.0\n"
