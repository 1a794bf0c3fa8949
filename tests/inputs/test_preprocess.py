"""From an image to the tensor that a model reads, and the checked values of `preprocessor.json`."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from mmt_cli.errors import ImageError, ModelError
from mmt_cli.inputs.preprocess import Preprocessing, to_picture, to_pixels
from mmt_cli.inputs.tiling import Tiling

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


@pytest.mark.parametrize("name", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_every_filter_is_pillows_of_that_name(name: str) -> None:
    image = halves(16, 16).rotate(30)
    how = Preprocessing(height=5, width=7, mean=(0.0,) * 3, std=(1.0,) * 3, rescale=1, resample=name)
    expected = image.resize((7, 5), Image.Resampling[name.upper()])
    assert to_pixels(image, how).byte().permute(1, 2, 0).flatten().tolist() == list(expected.tobytes())


PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rescale": 1}


def test_shortest_edge_keeps_the_aspect_ratio_and_the_centre() -> None:
    pixels_CHW = to_pixels(halves(60, 10), Preprocessing(height=10, width=4, shortest_edge=10, **PLAIN))
    assert pixels_CHW[0].tolist() == [[255, 255, 0, 0]] * 10


def test_squash_to_one_size_and_crop_to_another_gives_the_centre() -> None:
    pixels_CHW = to_pixels(halves(60, 10), Preprocessing(height=2, width=3, squash=(10, 60), **PLAIN))
    assert pixels_CHW[0].tolist() == [[255, 255, 0]] * 2


def test_a_crop_larger_than_the_image_is_filled_with_black() -> None:
    how = Preprocessing(height=4, width=5, squash=(1, 2), **PLAIN)
    assert to_pixels(Image.new("RGB", (9, 9), "white"), how)[0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 255, 255, 0],
        [0, 0, 0, 0, 0],
    ]


def test_square_fill_pads_both_sides_before_the_resize() -> None:
    how = Preprocessing(height=4, width=4, square_fill=(7, 8, 9), **PLAIN)
    pixels_CHW = to_pixels(Image.new("RGB", (4, 1), "white"), how)
    assert pixels_CHW[:, :, 0].tolist() == [[7, 255, 7, 7], [8, 255, 8, 8], [9, 255, 9, 9]]
    assert torch.equal(to_pixels(Image.new("RGB", (1, 4), "white"), how), pixels_CHW.transpose(1, 2))


def test_a_picture_that_is_not_split_is_one_image() -> None:
    picture = to_picture(halves(6, 4), Preprocessing(**VALUES))
    assert (picture.rows, picture.columns, picture.thumbnail) == (0, 0, False)
    assert torch.equal(picture.pixels_NCHW, to_pixels(halves(6, 4), Preprocessing(**VALUES))[None])


TILED = Preprocessing(height=8, width=8, tiling=Tiling(kind="internvl", min_tiles=1, max_tiles=4), **PLAIN)


def test_a_split_picture_holds_its_tiles_and_then_the_whole() -> None:
    picture = to_picture(halves(32, 8), TILED)
    assert (picture.rows, picture.columns, picture.thumbnail) == (1, 4, True)
    assert picture.pixels_NCHW.shape == (5, 3, 8, 8)
    assert picture.pixels_NCHW[:, 0].mean((1, 2)).tolist() == [255, 255, 0, 0, 127.5]


def test_without_split_keeps_the_picture_whole_and_all_else() -> None:
    whole = TILED.without_split()
    picture = to_picture(halves(32, 8), whole)
    assert (len(picture.pixels_NCHW), picture.rows, picture.columns, picture.thumbnail) == (1, 0, 0, False)
    assert torch.equal(to_pixels(halves(32, 8), whole), to_picture(halves(32, 8), TILED).pixels_NCHW[-1])
    assert Preprocessing(**VALUES).without_split() == Preprocessing(**VALUES)


def test_to_pixels_has_one_tensor_only() -> None:
    with pytest.raises(AssertionError):
        to_pixels(halves(8, 8), TILED)


@pytest.mark.parametrize(
    ("size", "how"),
    [
        ((1, 65_000), {"shortest_edge": 100}),
        ((65_000, 1), {"shortest_edge": 100}),
        ((1, 65_000), {"square_fill": (0, 0, 0)}),
        ((1, 1_500_000), {}),
        ((1, 1_500_000), {"tiling": Tiling(kind="internvl", min_tiles=1, max_tiles=4)}),
    ],
    ids=str,
)
def test_strips_that_would_take_much_memory_are_too_large(size: tuple[int, int], how: dict[str, Any]) -> None:
    preprocessing = Preprocessing(height=100, width=100, mean=(0.5,) * 3, std=(0.5,) * 3, **how)
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels") as caught:
        to_picture(Image.new("RGB", size), preprocessing)
    assert caught.value.kind == "too_large"
    assert "\n" not in str(caught.value)


def test_strips_are_read_as_long_as_that_takes_little_memory() -> None:
    strip = Image.new("RGB", (1, 65_000))
    assert to_pixels(strip, Preprocessing(**VALUES | {"height": 224, "width": 224})).shape == (3, 224, 224)
    tiling = Tiling(kind="idefics3", longest_edge=256)
    assert to_picture(strip, Preprocessing(height=64, width=64, tiling=tiling, **PLAIN)).rows == 4


EVERY_KIND = [
    Preprocessing(**VALUES, resample="bilinear"),
    Preprocessing(**VALUES, shortest_edge=9, square_fill=(1, 2, 3), rescale=1.5, draft=False),
    Preprocessing(**VALUES, squash=(8, 7)),
    TILED,
    Preprocessing(height=8, width=8, tiling=Tiling(kind="idefics3", longest_edge=9, split=False), **PLAIN),
]


@pytest.mark.parametrize("preprocessing", EVERY_KIND)
def test_json_round_trip_through_text(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_files_with_the_first_five_keys_alone_mean_a_squash() -> None:
    data = {"height": 4, "width": 6, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 1.0]}
    assert Preprocessing.from_json(data) == Preprocessing(**VALUES)
    assert Preprocessing.from_json(data | {"resample": "bicubic"}) == Preprocessing(**VALUES)
    assert Preprocessing(**VALUES).draft


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
        ({"resample": "cubic"}, "'cubic'"),
        ({"resample": ["bicubic"]}, "resample"),
        ({"rescale": 0}, "rescale"),
        ({"rescale": math.nan}, "rescale"),
        ({"rescale": "1"}, "rescale"),
        ({"shortest_edge": 0}, "shortest_edge"),
        ({"shortest_edge": 8193}, "8193"),
        ({"squash": [4]}, "squash"),
        ({"squash": [4, 8193]}, "8193"),
        ({"squash": 4}, "squash"),
        ({"square_fill": [0, 0, 256]}, "256"),
        ({"square_fill": [0, 0]}, "square_fill"),
        ({"draft": 1}, "draft"),
        ({"shortest_edge": 5, "squash": [4, 4]}, "shortest_edge, squash"),
        ({"square_fill": [0, 0, 0], "tiling": {"kind": "internvl", "min_tiles": 1, "max_tiles": 2}}, "tiling"),
        ({"squash": [4, 4], "tiling": {"kind": "internvl", "min_tiles": 1, "max_tiles": 2}}, "squash, tiling"),
        ({"tiling": {"kind": "idefics3", "longest_edge": 9}}, "6, not 4"),
        ({"tiling": {"kind": "x"}}, "'x'"),
        ({"tiling": 3}, "int"),
        ({"tiling": {}}, "kind"),
        ({"tiling": {"kind": "internvl", "rows": 2}}, "rows"),
    ],
)
def test_bad_values_are_refused_and_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        Preprocessing.from_json(Preprocessing(**VALUES).to_json() | change)
    assert "\n" not in str(caught.value)
    assert "preprocessor" in str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ModelError, match=r"missing keys \('width, mean'\)"):
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
