"""Fewer image tokens: squares of cells put side by side or averaged, and like tokens merged.

B batch, N image tokens, D width, R rows and C columns of a grid, S sources and K destinations of
merging, M those merged, E width and one channel more.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.model.image_config import ReductionConfig

Grid = tuple[int, int]


def pixel_shuffle(x_BND: Tensor, grid: Grid, factor: int) -> Tensor:
    """Return each square of `factor` x `factor` cells as one token, `factor`² times as wide (space to depth).

    The cells of a square follow each other row by row, as in Idefics3 and SmolVLM. `factor` divides the grid's sides.
    """
    rows, columns = grid
    squares = torch.unflatten(x_BND, 1, (rows // factor, factor, columns // factor, factor)).transpose(2, 3)
    return squares.flatten(3).flatten(1, 2)


def average(x_BND: Tensor, grid: Grid, factor: int) -> Tensor:
    """Return the mean of each square of `factor` x `factor` cells; squares at the border average what is there."""
    x_BDRC = torch.unflatten(x_BND.transpose(1, 2), 2, grid)
    return functional.avg_pool2d(x_BDRC, factor, ceil_mode=True).flatten(2).transpose(1, 2)


def build_reduction(config: ReductionConfig) -> Callable[[Tensor, Grid | None], Tensor]:
    """Return the function from tokens BND and the grid they lie in to the fewer, perhaps wider tokens.

    Only `reduction none` takes tokens that lie in no grid.
    """
    if config.reduction == "none":
        return _unchanged
    reduce = {"pixel_shuffle": pixel_shuffle, "average": average}[config.reduction]
    return partial(_on_grid, reduce=reduce, factor=config.reduction_factor)


def reduced_width(config: ReductionConfig, tower_width: int) -> int:
    """Return the width of a token that `build_reduction` gives for one of `tower_width`."""
    return tower_width * config.reduction_factor**2 if config.reduction == "pixel_shuffle" else tower_width


def merge_tokens(x_BND: Tensor, size_BN: Tensor, merged: int, extra: int) -> tuple[Tensor, Tensor]:
    """Return `merged` tokens fewer, by bipartite soft matching (Bolya et al. 2023, ToMe), and their sizes.

    Every other cell is a source, the rest are destinations; each source names the destination most like it, and the
    `merged` sources that are most like theirs join them, as a mean weighted by size. Several may join the same one.
    Alike is the cosine of the tokens themselves. The paper compares the keys of the attention before; but keys differ
    by kernel and belong to it, so tokens can be merged between any two blocks.

    A token of size s must count s times in attention: add log size to the scores of its key.

    Args:
        x_BND: class tokens first.
        size_BN: float32, how many patches a token stands for; ones at first.
        merged: at most half of the cells.
        extra: class tokens, which never merge and stay first.

    Returns:
        x_BND, size_BN: class tokens, the sources that are left in their order, the destinations in their order.
    """
    if merged == 0:
        return x_BND, size_BN
    assert 2 * merged <= x_BND.shape[1] - extra, (x_BND.shape, merged, extra)
    size_BN1 = size_BN[:, :, None]
    # Sums over patches, with their number in the last channel, merge by addition alone. In float32, for half precision
    # loses a patch that joins many.
    sums_BNE = torch.cat([x_BND.float() * size_BN1, size_BN1], dim=2)
    class_BNE, cells_BNE = sums_BNE[:, :extra], sums_BNE[:, extra:]
    left_BS, joining_BM, joined_BM = _matched(x_BND[:, extra:].detach(), merged)
    source_BSE, destination_BKE = cells_BNE[:, ::2], cells_BNE[:, 1::2]
    index_BME = joined_BM[:, :, None].expand(-1, -1, sums_BNE.shape[2])
    destination_BKE = destination_BKE.scatter_add(1, index_BME, _taken(source_BSE, joining_BM))
    sums_BNE = torch.cat([class_BNE, _taken(source_BSE, left_BS), destination_BKE], dim=1)
    return (sums_BNE[:, :, :-1] / sums_BNE[:, :, -1:]).to(x_BND.dtype), sums_BNE[:, :, -1]


def _unchanged(x_BND: Tensor, grid: Grid | None) -> Tensor:
    return x_BND


def _on_grid(x_BND: Tensor, grid: Grid | None, *, reduce: Callable[[Tensor, Grid, int], Tensor], factor: int) -> Tensor:
    assert grid is not None
    return reduce(x_BND, grid, factor)


def _matched(cells_BND: Tensor, merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sources that are left, those that join, and the destinations that these join, by index."""
    # Cosines of like tokens lie close to 1, where bfloat16 tells few apart.
    with torch.autocast(cells_BND.device.type, enabled=False):
        direction_BND = functional.normalize(cells_BND.float(), dim=2)
        like_BSK = direction_BND[:, ::2] @ direction_BND[:, 1::2].transpose(1, 2)
    most_BS, nearest_BS = like_BSK.max(dim=2)
    order_BS = most_BS.argsort(dim=1, descending=True, stable=True)
    joining_BM, left_BS = order_BS[:, :merged], order_BS[:, merged:].sort(dim=1).values
    return left_BS, joining_BM, nearest_BS.gather(1, joining_BM)


def _taken(tokens_BNE: Tensor, index_BM: Tensor) -> Tensor:
    """Return tokens_BME at these indices."""
    return tokens_BNE.gather(1, index_BM[:, :, None].expand(-1, -1, tokens_BNE.shape[2]))
