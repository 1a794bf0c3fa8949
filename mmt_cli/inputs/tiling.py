"""Cutting a large image into tiles, each of which the model reads as an image of its own, and a small whole after them.

The sizes follow transformers' PIL-backed image processors to the pixel, their float arithmetic included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self, get_args

from PIL import Image

from mmt_cli.inputs.values import MAX_PIXELS, bad_value, check_flag, check_keys, check_whole

TilingKind = Literal["idefics3", "internvl"]
Resize = Callable[[Image.Image, int, int], Image.Image]
"""(image, height, width) -> the image squashed to that size."""

MAX_TILES = 1024
_IDEFICS3_MAX_SIDE = 4096  # pixels: Idefics3 enlarges no image beyond, whatever its longest_edge


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How an image is cut into tiles.

    - `idefics3` (SmolVLM too): the image's longer side becomes `longest_edge` pixels, then both sides are stretched to
      multiples of the tile's, and it is cut. Not split, it is squashed to one tile, by way of `longest_edge` too.
    - `internvl`: of all grids of `min_tiles` to `max_tiles` tiles the one of the nearest shape is taken, the image is
      squashed to it and cut. Not split, it is squashed to one tile.

    The whole image, squashed to one tile, follows the tiles wherever there is more than one.

    Raises:
        ModelError: a value out of bounds, or one that the kind does not have; named with the bound.
    """

    kind: TilingKind
    split: bool = True
    longest_edge: int | None = None
    min_tiles: int | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TilingKind):
            raise bad_value("kind", self.kind, " or ".join(get_args(TilingKind)))
        check_flag("split", self.split)
        used = {"longest_edge"} if self.kind == "idefics3" else {"min_tiles", "max_tiles"}
        for name in {"longest_edge", "min_tiles", "max_tiles"} - used:
            if getattr(self, name) is not None:
                raise bad_value(name, getattr(self, name), f"left out, as kind {self.kind} has none")
        if self.kind == "idefics3":
            check_whole("longest_edge", self.longest_edge)
            return
        most = check_whole("max_tiles", self.max_tiles, MAX_TILES)
        check_whole("min_tiles", self.min_tiles, most)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build from the values under `tiling` in `preprocessor.json`.

        Raises:
            ModelError: not an object, unknown or missing keys (named), or bad values.
        """
        return cls(**check_keys(cls, data, "tiling in preprocessor.json"))

    def most_tiles(self, side: int) -> int:
        """Return how many tiles of so many pixels a side stand for one picture at most, its whole counted."""
        if not self.split:
            return 1
        if self.max_tiles is not None:
            return self.max_tiles + (self.max_tiles > 1)
        assert self.longest_edge is not None
        grid: int = math.ceil(min(self.longest_edge, _IDEFICS3_MAX_SIDE) / side) ** 2
        return grid + (grid > 1)

    def check_tile(self, height: int, width: int) -> None:
        """Refuse tiles that this tiling cannot cut, or would cut without end.

        Raises:
            ModelError: the tile does not fit; names both sizes.
        """
        if self.kind == "idefics3":
            side = check_whole("height", height)
            if width != side:
                raise bad_value("width", width, f"{side} like height, as tiling idefics3 needs")
            longest = min(check_whole("longest_edge", self.longest_edge), _IDEFICS3_MAX_SIDE)
            if math.ceil(longest / side) ** 2 > MAX_TILES:
                raise bad_value("longest_edge", longest, f"what at most {MAX_TILES} tiles of {side} x {side} make")
        elif height * width * check_whole("max_tiles", self.max_tiles) > MAX_PIXELS:
            raise bad_value("max_tiles", self.max_tiles, f"at most {MAX_PIXELS} pixels of {height} x {width} tiles")


def cut(
    image: Image.Image, tiling: Tiling, height: int, width: int, resize: Resize
) -> tuple[list[Image.Image], int, int]:
    """Return (the images that the model reads, rows, columns).

    Args:
        image: an upright RGB image.
        tiling: how to cut it.
        height: of a tile, in pixels.
        width: of a tile, in pixels.
        resize: squashes an image to a height and width.

    Returns:
        `rows * columns` tiles, row by row, and the whole image last, all of height x width; or, where the image is not
        split, the whole image alone and 0, 0.
    """
    if tiling.kind == "idefics3":
        return _cut_idefics3(image, tiling, height, resize)
    assert tiling.min_tiles is not None and tiling.max_tiles is not None
    whole = resize(image, height, width)
    if not tiling.split:
        return [whole], 0, 0
    rows, columns = grid_nearest(image.height, image.width, height, width, tiling.min_tiles, tiling.max_tiles)
    if rows * columns == 1:
        return [whole], 0, 0
    canvas = resize(image, rows * height, columns * width)
    return [*_tiles(canvas, height, width), whole], rows, columns


def _cut_idefics3(image: Image.Image, tiling: Tiling, side: int, resize: Resize) -> tuple[list[Image.Image], int, int]:
    assert tiling.longest_edge is not None
    enlarged = resize(image, *idefics3_size(image.height, image.width, tiling.longest_edge))
    if not tiling.split:
        return [resize(enlarged, side, side)], 0, 0
    height, width = _whole_tiles(enlarged.height, enlarged.width, side)
    canvas = resize(enlarged, height, width)
    if height == width == side:
        return [canvas], 0, 0
    return [*_tiles(canvas, side, side), resize(canvas, side, side)], height // side, width // side


def _tiles(canvas: Image.Image, height: int, width: int) -> list[Image.Image]:
    """Return the tiles of `canvas`, row by row; its sides are multiples of theirs."""
    return [
        canvas.crop((left, top, left + width, top + height))
        for top in range(0, canvas.height, height)
        for left in range(0, canvas.width, width)
    ]


def idefics3_size(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Return the (height, width) to which Idefics3 brings an image first: one side is `longest_edge`, the other even.

    Source: `get_resize_output_image_size` of transformers' image_processing_pil_idefics3.py, whose divisions by the
    ratio are kept, since they round differently from a product.
    """
    ratio = width / height
    if width >= height:
        width, height = longest_edge, _next_even(int(longest_edge / ratio))
    else:
        height, width = longest_edge, _next_even(int(longest_edge * ratio))
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > _IDEFICS3_MAX_SIDE:
        height, width = int(_IDEFICS3_MAX_SIDE / ratio), _IDEFICS3_MAX_SIDE
    elif height > width and height > _IDEFICS3_MAX_SIDE:
        height, width = _IDEFICS3_MAX_SIDE, int(_IDEFICS3_MAX_SIDE * ratio)
    return max(height, 1), max(width, 1)


def _next_even(number: int) -> int:
    return number + number % 2


def _whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the multiples of `side` to which a (height, width) is stretched: the longer one first, then the other.

    Source: `resize_for_vision_encoder` of transformers' image_processing_pil_idefics3.py.
    """
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return math.ceil(int(width / ratio) / side) * side, width
    height = math.ceil(height / side) * side
    return height, math.ceil(int(height * ratio) / side) * side


def grid_nearest(
    height: int, width: int, tile_height: int, tile_width: int, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """Return the (rows, columns) whose shape is nearest to an image's, and of equally near ones the largest that fits.

    A grid fits where it has less than twice the image's pixels. Its shape is its columns over its rows, whatever the
    shape of a tile.

    Source: `get_optimal_tiled_canvas` of transformers' image_processing_pil_got_ocr2.py.
    """
    grids = [
        (rows, columns)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if rows * columns >= min_tiles
    ]
    best, least = (1, 1), math.inf
    for rows, columns in sorted(grids, key=math.prod):
        difference = abs(width / height - columns / rows)
        fits = height * width > 0.5 * tile_height * tile_width * columns * rows
        if difference < least or (difference == least and fits):
            best, least = (rows, columns), difference
    return best
