"""Where on a photo lies what a model reads: preprocessing undone, for the places of things if not for their pixels.

T tiles (images that stand for one picture), R rows and C columns of cells, H height and W width of a map in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.inputs.preprocess import Picture, Preprocessing
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.image_config import ConvTowerConfig, PatchTowerConfig

_CONV_STRIDE = 32  # pixels between the cells of EfficientNet-Lite0's last map


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of the plane in fractions of the upright photo; what was padded around the photo lies beyond 0 and 1."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How a tile's tokens lie in it.

    Attributes:
        rows: of cells.
        columns: of cells.
        extra: tokens before them that lie nowhere.
        height: of all rows together, as a share of the tile's height: below 1 where pixels at the edge go unseen, above
            where the last cells reach beyond it.
        width: likewise.
    """

    rows: int
    columns: int
    extra: int
    height: float
    width: float


def resized(width: int, height: int, how: Preprocessing) -> tuple[int, int]:
    """Return (height, width) to which an image, or the square around it, is resized before it is cropped."""
    if how.shortest_edge is None:
        return how.squash or (how.height, how.width)
    if how.square_fill is not None:
        return how.shortest_edge, how.shortest_edge
    longer = int(how.shortest_edge * max(width, height) / min(width, height))
    return (longer, how.shortest_edge) if width <= height else (how.shortest_edge, longer)


def tile_boxes(width: int, height: int, picture: Picture) -> list[Box]:
    """Return where on the photo each of the images lies that the model reads for it.

    Args:
        width: of the upright photo, in pixels.
        height: likewise.
        picture: what was made of it.
    """
    whole = Box(left=0.0, top=0.0, right=1.0, bottom=1.0)
    if picture.how.tiling is None:
        return [_crop_box(width, height, picture.how)]
    rows, columns = picture.rows, picture.columns
    tiles = [
        Box(left=column / columns, top=row / rows, right=(column + 1) / columns, bottom=(row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return tiles + [whole] * (len(picture) - len(tiles))


def _crop_box(width: int, height: int, how: Preprocessing) -> Box:
    """Return where the one image lies that is made of a photo: padded to a square, resized, its centre cropped."""
    padded = (max(width, height),) * 2 if how.square_fill is not None else (width, height)
    new_height, new_width = resized(width, height, how)
    edges: list[tuple[float, float]] = []
    for side, full, new, kept in (
        (width, padded[0], new_width, how.width),
        (height, padded[1], new_height, how.height),
    ):
        before, cropped = (full - side) // 2, (new - kept) // 2
        edges.append(((cropped * full / new - before) / side, ((cropped + kept) * full / new - before) / side))
    (left, right), (top, bottom) = edges
    return Box(left=left, top=top, right=right, bottom=bottom)


def cells_of(config: ModelConfig, how: Preprocessing) -> Cells | None:
    """Return how the image tokens of a tile lie in it; None where tokens have been merged, which lie nowhere."""
    if not config.vision.keeps_grid:
        return None
    tower_rows, tower_columns = config.vision.grid_of(how.height, how.width)
    grid, count = config.image_shape(how.height, how.width)
    rows, columns = grid or (tower_rows, tower_columns)  # Florence-2's connector only puts a token before its cells
    factor = 1
    if config.connector is not None and getattr(config.connector, "reduction", "none") != "none":
        factor = config.connector.reduction_factor  # type: ignore[union-attr]
    if isinstance(config.vision, PatchTowerConfig):
        cell: tuple[float, float] = (config.vision.patch_size, config.vision.patch_size)
    elif isinstance(config.vision, ConvTowerConfig):
        cell = (_CONV_STRIDE, _CONV_STRIDE)
    else:
        cell = (how.height / tower_rows, how.width / tower_columns)
    return Cells(
        rows=rows,
        columns=columns,
        extra=count - rows * columns,
        height=rows * factor * cell[0] / how.height,
        width=columns * factor * cell[1] / how.width,
    )


def spread(weights_TRC: Tensor, boxes: Sequence[Box], cells: Cells, *, height: int, width: int) -> Tensor:
    """Return map_HW over the photo: how dense the weights lie there.

    A cell's weight is spread over the part of the photo that it covers, and what several tiles see adds up. The unit is
    the density that a weight of 1 has when it is spread evenly over the photo.
    """
    map_HW = torch.zeros(height, width)
    for weights_RC, box in zip(weights_TRC, boxes, strict=True):
        box_width, box_height = (box.right - box.left) * cells.width, (box.bottom - box.top) * cells.height
        # Edges in pixels, rounded so that tiles that touch leave nothing between them; some lie beside the photo.
        top, bottom = round(box.top * height), round((box.top + box_height) * height)
        left, right = round(box.left * width), round((box.left + box_width) * width)
        size = (max(bottom - top, 1), max(right - left, 1))
        density_RC = weights_RC * (weights_RC.numel() / (box_width * box_height))
        smooth_11HW = functional.interpolate(density_RC[None, None], size=size, mode="bicubic")
        smooth_HW = smooth_11HW[0, 0].clamp_min(0)
        above, before = max(-top, 0), max(-left, 0)
        part_HW = smooth_HW[above : max(height - top, 0), before : max(width - left, 0)]
        y, x = max(top, 0), max(left, 0)
        map_HW[y : y + part_HW.shape[0], x : x + part_HW.shape[1]] += part_HW
    return map_HW


def seen(boxes: Sequence[Box]) -> Box:
    """Return the part of the photo that the model saw at all."""
    return Box(
        left=max(min(box.left for box in boxes), 0.0),
        top=max(min(box.top for box in boxes), 0.0),
        right=min(max(box.right for box in boxes), 1.0),
        bottom=min(max(box.bottom for box in boxes), 1.0),
    )


def fitted(width: int, height: int, largest: int) -> tuple[int, int]:
    """Return (width, height) of the same shape, the longer side `largest` pixels and the other at least one."""
    scale = largest / max(width, height)
    return max(math.floor(width * scale + 0.5), 1), max(math.floor(height * scale + 0.5), 1)
