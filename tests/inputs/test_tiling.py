"""Grids of tiles: their sizes, their order, and the checked values of a tiling."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from mmt_cli.errors import ModelError
from mmt_cli.inputs.tiling import Tiling, cut, grid_nearest, idefics3_size

SIDES = st.integers(1, 200) | st.integers(1, 10_000)
IDEFICS3 = Tiling(kind="idefics3", longest_edge=32)
INTERNVL = Tiling(kind="internvl", min_tiles=1, max_tiles=6)


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.NEAREST)


def mosaic(rows: int, columns: int, side: int) -> Image.Image:
    """Squares of one colour each, whose red is their row and whose green is their column."""
    image = Image.new("RGB", (columns, rows))
    image.putdata([(row, column, 9) for row in range(rows) for column in range(columns)])
    return resize(image, rows * side, columns * side)


def colours(images: list[Image.Image]) -> list[Any]:
    """The single colour of each image; fails where one holds several."""
    found = [image.getcolors() for image in images]
    assert all(colour is not None and len(colour) == 1 for colour in found)
    return [colour[0][1] for colour in found if colour]


@example(height=59, width=96, longest_edge=96)  # 96 over 96 / 59 is a little less than 59
@given(height=SIDES, width=SIDES, longest_edge=st.integers(1, 9000))
def test_idefics3_sizes_are_those_of_transformers(height: int, width: int, longest_edge: int) -> None:
    image: Any = torch.empty(3, height, width, device="meta")
    assert idefics3_size(height, width, longest_edge) == get_resize_output_image_size(image, longest_edge)


@example(height=4, width=4, tile=(4, 2), least=1)  # four tiles have exactly twice the image's pixels
@example(height=15, width=15, tile=(10, 10), least=1)  # and here a little less than that
@given(height=SIDES, width=SIDES, tile=st.tuples(st.integers(1, 500), st.integers(1, 500)), least=st.integers(1, 4))
def test_internvl_grids_are_those_of_transformers(height: int, width: int, tile: tuple[int, int], least: int) -> None:
    columns, rows = get_optimal_tiled_canvas((height, width), tile, least, 12)
    assert grid_nearest(height, width, *tile, least, 12) == (rows, columns)


@pytest.mark.parametrize("tiling", [Tiling(kind="idefics3", longest_edge=24), INTERNVL], ids=lambda tiling: tiling.kind)
def test_tiles_come_row_by_row_and_the_whole_comes_last(tiling: Tiling) -> None:
    images, rows, columns = cut(mosaic(2, 3, 8), tiling, 8, 8, resize)
    assert (rows, columns) == (2, 3)
    assert colours(images[:-1]) == [(row, column, 9) for row in range(2) for column in range(3)]
    assert images[-1].size == (8, 8)
    whole = images[-1].getcolors() or []
    assert {colour for _, colour in whole} == {(row, column, 9) for row in range(2) for column in range(3)}


def test_tiles_may_be_higher_than_wide() -> None:
    images, rows, columns = cut(mosaic(2, 2, 8), INTERNVL, 8, 4, resize)
    assert (rows, columns) == (2, 2)
    assert {image.size for image in images} == {(4, 8)}


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (1, 1), (33, 31)])
def test_no_image_gives_more_tiles_than_the_tiling_allows(size: tuple[int, int]) -> None:
    for tiling, most in ((IDEFICS3, 16), (INTERNVL, 6)):
        images, rows, columns = cut(Image.new("RGB", size), tiling, 8, 8, resize)
        assert rows * columns <= most
        assert len(images) == (rows * columns + 1 if rows else 1)
        assert {image.size for image in images} == {(8, 8)}


@pytest.mark.parametrize("tiling", [IDEFICS3, INTERNVL, Tiling(kind="idefics3", longest_edge=9, split=False)])
def test_json_round_trip_through_text(tiling: Tiling) -> None:
    from_text = json.loads(json.dumps(vars(tiling)))
    assert Tiling.from_json(from_text) == tiling
    assert Tiling.from_json({name: value for name, value in from_text.items() if value is not None}) == tiling


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "list"),
        ({}, "kind"),
        ({"kind": "llava"}, "'llava'"),
        ({"kind": ["idefics3"]}, "kind"),
        ({"kind": "idefics3"}, "longest_edge"),
        ({"kind": "idefics3", "longest_edge": 0}, "longest_edge"),
        ({"kind": "idefics3", "longest_edge": math.inf}, "inf"),
        ({"kind": "idefics3", "longest_edge": 9, "max_tiles": 3}, "max_tiles.*idefics3"),
        ({"kind": "idefics3", "longest_edge": 9, "split": 1}, "split"),
        ({"kind": "internvl", "min_tiles": 1}, "max_tiles"),
        ({"kind": "internvl", "max_tiles": 1}, "min_tiles"),
        ({"kind": "internvl", "min_tiles": 3, "max_tiles": 2}, "min_tiles.*3.*2"),
        ({"kind": "internvl", "min_tiles": 1, "max_tiles": 1025}, "1025"),
        ({"kind": "internvl", "min_tiles": 1, "max_tiles": 2, "longest_edge": 9}, "longest_edge"),
        ({"kind": "internvl", "min_tiles": 1, "max_tiles": 2, "new\nline": 9}, "unknown keys"),
    ],
)
def test_bad_values_are_refused_and_named(data: object, named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        Tiling.from_json(data)
    assert "\n" not in str(caught.value)


def test_tiles_that_do_not_fit_the_tiling_are_refused() -> None:
    with pytest.raises(ModelError, match="9, not 8"):
        IDEFICS3.check_tile(8, 9)
    with pytest.raises(ModelError, match="1024 tiles of 4 x 4"):
        Tiling(kind="idefics3", longest_edge=129).check_tile(4, 4)
    Tiling(kind="idefics3", longest_edge=128).check_tile(4, 4)
    with pytest.raises(ModelError, match="8192 x 8192"):
        INTERNVL.check_tile(8192, 8192)
    INTERNVL.check_tile(448, 448)
