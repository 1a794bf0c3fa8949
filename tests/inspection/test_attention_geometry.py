"""What lies where in a model's pixels is found where it lies on the photo."""

from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from mmt_cli.inputs.preprocess import Preprocessing, to_picture
from mmt_cli.inputs.tiling import Tiling
from mmt_cli.inspection.geometry import Box, Cells, cells_of, seen, spread, tile_boxes
from mmt_cli.model.presets import preset

SIZE = 96
WAYS: dict[str, dict[str, Any]] = {
    "squash": {},
    "squash-and-crop": {"squash": (128, 112)},
    "shortest-edge": {"shortest_edge": 96},
    "shortest-edge-and-crop": {"shortest_edge": 110},
    "shortest-edge-below": {"shortest_edge": 80},
    "square": {"square_fill": (10, 20, 30)},
    "square-and-crop": {"square_fill": (10, 20, 30), "shortest_edge": 110},
    "idefics3": {"tiling": Tiling(kind="idefics3", longest_edge=300)},
    "idefics3-whole": {"tiling": Tiling(kind="idefics3", longest_edge=300, split=False)},
    "internvl": {"tiling": Tiling(kind="internvl", min_tiles=1, max_tiles=6)},
}


def how(**way: Any) -> Preprocessing:
    return Preprocessing(height=SIZE, width=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3, resample="bilinear", **way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("width", "height"), [(300, 200), (180, 320), (240, 240)])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.42, 0.6), (0.63, 0.35)])
def test_a_spot_on_the_photo_is_found_again(way: str, width: int, height: int, place: tuple[float, float]) -> None:
    photo = Image.new("RGB", (width, height))
    x, y = place[0] * width, place[1] * height
    ImageDraw.Draw(photo).ellipse((x - 12, y - 12, x + 12, y + 12), fill=(255, 255, 255))
    picture = to_picture(photo, how(**WAYS[way]))
    # A cell for each pixel, as bright as it is: what comes back is the photo.
    weights_TRC = picture.samples_NHWC.float().mean(dim=-1)
    weights_TRC[weights_TRC < 100] = 0.0
    boxes = tile_boxes(width, height, picture)
    cells = Cells(rows=SIZE, columns=SIZE, extra=0, height=1.0, width=1.0)
    map_HW = spread(weights_TRC, boxes, cells, height=height, width=width)
    total = map_HW.sum()
    found_y = float((map_HW.sum(dim=1) * (torch.arange(height) + 0.5)).sum() / total)
    found_x = float((map_HW.sum(dim=0) * (torch.arange(width) + 0.5)).sum() / total)
    assert (found_x, found_y) == pytest.approx((x + 0.5, y + 0.5), abs=2.5)


def test_a_weight_of_one_spread_evenly_is_a_density_of_one() -> None:
    picture = to_picture(Image.new("RGB", (300, 200)), how(**WAYS["idefics3"]))
    cells = Cells(rows=4, columns=4, extra=0, height=1.0, width=1.0)
    count = len(picture)
    weights_TRC = torch.full((count, 4, 4), 1 / (16 * count))
    map_HW = spread(weights_TRC, tile_boxes(300, 200, picture), cells, height=200, width=300)
    # The thumbnail covers all of it, the tiles each their own part.
    torch.testing.assert_close(map_HW, torch.ones(200, 300), rtol=0.02, atol=0.02)


def test_what_is_cropped_away_was_not_seen() -> None:
    picture = to_picture(Image.new("RGB", (300, 200)), how(shortest_edge=96))
    [box] = tile_boxes(300, 200, picture)
    assert seen([box]) == Box(
        left=pytest.approx(1 / 6, abs=0.01), top=0.0, right=pytest.approx(5 / 6, abs=0.01), bottom=1.0
    )
    map_HW = spread(
        torch.ones(1, 3, 3) / 9, [box], Cells(rows=3, columns=3, extra=0, height=1, width=1), height=20, width=30
    )
    assert float(map_HW[:, :5].abs().max()) == 0.0
    assert float(map_HW[:, 10:20].min()) == pytest.approx(1.5, rel=0.02)


def test_what_is_padded_lies_beside_the_photo() -> None:
    picture = to_picture(Image.new("RGB", (300, 200)), how(square_fill=(0, 0, 0)))
    assert tile_boxes(300, 200, picture) == [Box(left=0.0, top=-0.25, right=1.0, bottom=1.25)]


def test_cells_lie_as_the_tower_lays_them() -> None:
    mini = cells_of(preset("mini"), how_for(224))
    assert mini == Cells(rows=7, columns=7, extra=0, height=1.0, width=1.0)
    git = cells_of(preset("git-base"), how_for(224))
    assert git == Cells(rows=14, columns=14, extra=1, height=1.0, width=1.0)
    smol = cells_of(preset("smolvlm-256m"), how_for(512))
    assert smol == Cells(rows=8, columns=8, extra=0, height=1.0, width=1.0)
    ragged = cells_of(preset("mini", {"vision.image_size": 240}), how_for(240))
    assert ragged is not None and ragged.height == pytest.approx(8 * 32 / 240)


def how_for(size: int) -> Preprocessing:
    return Preprocessing(height=size, width=size, mean=(0.0,) * 3, std=(1.0,) * 3)
