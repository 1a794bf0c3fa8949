"""Where a token stands: learned tables, positions of cells on a grid, and text positions that skip padding.

B batch, T text tokens, N image tokens or rows of a table, D width, R rows and C columns of a grid, A one of the two,
E half the width.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.image_config import GridPositions

Grid = tuple[int, int]
# (table_ND or None, grid of the tokens or None, tokens_BND for device and dtype) → positions_ND to add, or None
Positions = Callable[[Tensor | None, Grid | None, Tensor], Tensor | None]

_TEMPERATURE = 10_000.0


def learned_positions(count: int, width: int) -> nn.Parameter:
    """Return a table of `count` learned positions, added to the tokens in order."""
    return nn.Parameter(torch.zeros(count, width))


def text_positions(token_ids_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Return position_BT: 0, 1, 2 … over the valid tokens of each row; padding repeats the last one."""
    if valid_BT is None:
        return torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device)[None]
    return (valid_BT.cumsum(dim=1) - 1).clamp_min(0)


def table_rows(kind: GridPositions, grid: Grid, extra: int) -> int:
    """Return how many rows the learned table of image tokens has; 0 where nothing is learned.

    Args:
        kind: `learned`: a vector for each token. `learned_2d`: one for each row and one for each column.
        grid: rows and columns of the cells; (1, N) for merged tokens, which lie in no grid.
        extra: class tokens before the cells; their vectors are the table's first rows.
    """
    rows, columns = grid
    return {"none": 0, "learned": extra + rows * columns, "learned_2d": extra + rows + columns, "sincos_2d": 0}[kind]


def build_positions(kind: GridPositions, width: int, home: Grid | None, extra: int) -> Positions:
    """Return the function that gives image tokens their positions.

    It takes the table of `table_rows` (None where nothing is learned), the grid that the tokens lie in, and the tokens
    BND, whose device and dtype computed positions take. It returns positions_ND to be added, class tokens first, cells
    row by row; None where there are none. A table on a grid other than its own is resampled.

    Args:
        kind: as in `table_rows`; `sincos_2d` is computed for whatever grid.
        width: of a token; for `sincos_2d` divisible by 4.
        home: the grid that the table was made for; None for merged tokens, which lie in no grid: the table as it is.
        extra: class tokens before the cells.
    """
    if kind == "none":
        return _none
    if kind == "sincos_2d":
        return partial(_sincos_2d, width=width, extra=extra)
    if home is None:
        assert kind == "learned", kind
        return _whole_table
    return partial(_learned if kind == "learned" else _learned_2d, home=home, extra=extra)


def _none(table_ND: Tensor | None, grid: Grid | None, tokens_BND: Tensor) -> None:
    return None


def _whole_table(table_ND: Tensor | None, grid: Grid | None, tokens_BND: Tensor) -> Tensor | None:
    return table_ND


def _learned(table_ND: Tensor | None, grid: Grid | None, tokens_BND: Tensor, *, home: Grid, extra: int) -> Tensor:
    """Resample the cells' vectors bicubically, as DINOv2 does; class tokens keep theirs."""
    assert table_ND is not None
    assert grid is not None
    if grid == home:
        return table_ND
    cells_1DRC = torch.unflatten(table_ND[extra:].T, 1, home)[None]
    cells_ND = _resampled(cells_1DRC, grid)[0].flatten(1).T
    return torch.cat([table_ND[:extra], cells_ND])


def _learned_2d(table_ND: Tensor | None, grid: Grid | None, tokens_BND: Tensor, *, home: Grid, extra: int) -> Tensor:
    """Add the vector of a cell's row to that of its column."""
    assert table_ND is not None
    assert grid is not None
    class_ND, row_RD, column_CD = torch.split(table_ND, [extra, *home])
    cells_RCD = _resampled_axis(row_RD, grid[0])[:, None] + _resampled_axis(column_CD, grid[1])
    return torch.cat([class_ND, cells_RCD.flatten(0, 1)])


def _resampled_axis(table_AD: Tensor, count: int) -> Tensor:
    """Resample along one axis: a grid with a single column gives the cubic weights of one dimension."""
    if len(table_AD) == count:
        return table_AD
    return _resampled(table_AD.T[None, :, :, None], (count, 1))[0, :, :, 0].T


def _resampled(cells_1DRC: Tensor, grid: Grid) -> Tensor:
    """Resample in float32, for half precision shifts the vectors; back in their dtype."""
    resampled_1DRC = functional.interpolate(cells_1DRC.float(), size=grid, mode="bicubic", align_corners=False)
    return resampled_1DRC.to(cells_1DRC.dtype)


def _sincos_2d(table_ND: Tensor | None, grid: Grid | None, tokens_BND: Tensor, *, width: int, extra: int) -> Tensor:
    """Return sines and cosines of the row, then of the column, as He et al. 2022 (MAE); zeros at class tokens.

    Their own code puts the column first, transformers' (`build_2d_sinusoidal_position_embedding`) the row.
    """
    assert grid is not None
    rows, columns = grid
    row_RE = _sincos(rows, width // 2, tokens_BND.device)
    column_CE = _sincos(columns, width // 2, tokens_BND.device)
    cells_RCD = torch.cat([row_RE[:, None].expand(-1, columns, -1), column_CE.expand(rows, -1, -1)], dim=2)
    return torch.cat([cells_RCD.new_zeros(extra, width), cells_RCD.flatten(0, 1)]).to(tokens_BND.dtype)


def sinusoids(place_BT: Tensor, width: int) -> Tensor:
    """Return sines, then cosines, of each place, BTD in float32, as tensor2tensor has them (an odd width ends in 0)."""
    half = width // 2
    frequency_F = torch.exp(
        torch.arange(half, dtype=torch.float32, device=place_BT.device) * -(math.log(_TEMPERATURE) / (half - 1))
    )
    angle_BTF = place_BT.float()[..., None] * frequency_F
    return functional.pad(torch.cat([angle_BTF.sin(), angle_BTF.cos()], dim=-1), (0, width % 2))


def _sincos(count: int, width: int, device: torch.device) -> Tensor:
    """Return the sines of 0 … count - 1 at falling frequencies, then the cosines, AE in float32."""
    frequency_F = _TEMPERATURE ** -(torch.arange(width // 2, device=device) / (width // 2))
    angle_AF = torch.arange(count, device=device)[:, None] * frequency_F
    return torch.cat([angle_AF.sin(), angle_AF.cos()], dim=1)
