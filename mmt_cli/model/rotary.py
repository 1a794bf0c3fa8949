"""Rotary positions (Su et al. 2021, RoFormer): queries and keys turned by their place, so scores tell the distance.

The halves of a head are the coordinates of its points: channel i turns with channel i + E/2, as transformers' Llama
has it. On more than one axis each pair of channels belongs to one axis.

B batch, H heads, L sequence, E width of a head, F = E/2 pairs of channels, A axes of a place, N image tokens,
T text tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmt_cli.model.block_config import BlockConfig


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Cosine and sine of each channel's angle; float32, B may be 1."""

    cos_B1LE: Tensor
    sin_B1LE: Tensor


def rotate(x_BHLE: Tensor, rotation: Rotation) -> Tensor:
    """Return queries or keys turned by their place: float32 inside, the dtype of `x_BHLE` outside."""
    x_BHLF, y_BHLF = x_BHLE.float().chunk(2, dim=-1)
    turned_BHLE = torch.cat([-y_BHLF, x_BHLF], dim=-1)
    return (x_BHLE.float() * rotation.cos_B1LE + turned_BHLE * rotation.sin_B1LE).to(x_BHLE.dtype)


def build_rotary(block: BlockConfig) -> Callable[[Tensor], Rotation] | None:
    """Return the function from places to rotations; None where the block has no rotary positions.

    It takes place_BLA, integers or floats, B or 1 rows, with as many axes as the kind has:
    `1d` 1. `2d` 2, row and column, half of the pairs each (Qwen2-VL's vision tower).
    `multimodal` 3, time, row and column, in the ratio 2 : 3 : 3 of the pairs, rounded in favour of time (the sections
    16, 24, 24 of Qwen2-VL's text decoder; Wang et al. 2024).
    """
    pairs = block.head_width // 2
    share = 3 * pairs // 8
    sections = {"none": (), "1d": (pairs,), "2d": (pairs // 2,) * 2, "multimodal": (pairs - 2 * share, share, share)}
    if block.rope == "none":
        return None
    # In the tower each axis has all the frequencies, from fast to slow; in the decoder they share them out.
    periods = pairs // 2 if block.rope == "2d" else pairs
    return partial(_rotation, sections=sections[block.rope], periods=periods, theta=block.rope_theta)


def _rotation(place_BLA: Tensor, *, sections: tuple[int, ...], periods: int, theta: float) -> Rotation:
    """Return the rotation of each place; `sections` says how many pairs of channels each axis turns."""
    assert place_BLA.shape[-1] == len(sections), (place_BLA.shape, sections)
    frequency_F = 1.0 / theta ** (torch.arange(periods, device=place_BLA.device, dtype=torch.float32) / periods)
    frequency_F = frequency_F.repeat(sum(sections) // periods)
    axes = zip(place_BLA.unbind(-1), sections, strict=True)
    place_BLF = torch.cat([place_BL[:, :, None].expand(-1, -1, count) for place_BL, count in axes], dim=2)
    angle_BLF = place_BLF.float() * frequency_F
    angle_B1LE = torch.cat([angle_BLF, angle_BLF], dim=-1)[:, None]
    return Rotation(cos_B1LE=angle_B1LE.cos(), sin_B1LE=angle_B1LE.sin())


def image_places(axes: int, grid: tuple[int, int], extra: int, device: torch.device) -> Tensor:
    """Return place_NA of image tokens, class tokens first, cells row by row.

    On one axis they count on. On two, row and column, and on three, time, row and column, as Qwen2-VL has it: one time
    for the whole image, rows and columns counted from there; class tokens stand at 0 on all axes, cells behind them.

    Args:
        axes: 1, 2 or 3.
        grid: rows and columns; (1, N) for merged tokens, which lie in no grid and can only be counted.
        extra: class tokens before the cells, 0 or 1.
        device: where the model runs.
    """
    rows, columns = grid
    cells = rows * columns
    if axes == 1:
        return torch.arange(extra + cells, device=device)[:, None]
    cell_N = torch.arange(cells, device=device)
    place_NA = torch.stack([cell_N * 0, cell_N // columns, cell_N % columns][-axes:], dim=1) + extra
    return torch.cat([place_NA.new_zeros(extra, axes), place_NA])


def next_place(axes: int, grid: tuple[int, int], extra: int) -> int:
    """Return the place of the first text token behind the image: one more than the largest of the image's."""
    rows, columns = grid
    return extra + (rows * columns if axes == 1 else max(rows, columns))


def text_places(axes: int, position_BT: Tensor, first: int) -> Tensor:
    """Return place_BTA of text tokens, the same on all axes; the text starts at `first`."""
    return (position_BT + first)[:, :, None].expand(-1, -1, axes)
