"""Attention over what is near: tiles of the picture, chunks of the text, a mask for everything else.

B batch, H heads, G heads of keys and values, Q queries, K keys, N image tokens, E head width, T tiles, A tiles along an
axis of the grid, S cells of a tile along it, W cells of its neighbourhood along it, L sequence.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.kernel_full import Kernel, full_attention
from mmt_cli.model.mask import Segment, Tokens, Visibility, Window, join

_TILE = 8  # least cells along a tile's side
_CHUNK = 128  # least words at once


class SlidingWindow(Kernel):
    """Softmax attention to the cells and words around each token, and to the whole other modality.

    Supports any mask, causal reading and caches, and equals full attention under `Visibility.mask(window)`. From
    nothing on, a large picture, and a long causal text behind it, take time and memory linear in their length; a cached
    step, rows that differ, key biases and what is small go through the mask.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(
        self,
        q_BHQE: Tensor,
        k_BGKE: Tensor,
        v_BGKE: Tensor,
        visibility: Visibility,
        dropout: float,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values, BHQE."""
        tiles = self._tiles(visibility)
        texts = [self._is_long_text(visibility, segment) for segment in visibility.segments]
        if tiles is None and not any(texts):
            return full_attention(q_BHQE, k_BGKE, v_BGKE, visibility.mask(self.window), dropout)
        read: dict[int, Tensor] = {}  # by the first query
        for index, segment in enumerate(visibility.segments):
            if tiles is not None and index == 0:
                image = slice(segment.start, segment.end)
                q_k_v = q_BHQE[:, :, image], k_BGKE[:, :, image], v_BGKE[:, :, image]
                read[segment.start] = _tiled_attention(*q_k_v, tiles, dropout)
                continue
            for queries, keys in self._parts(visibility.segments, index, banded=texts[index]):
                k_BGPE, v_BGPE = (torch.cat([x[:, :, span] for span in keys], dim=2) for x in (k_BGKE, v_BGKE))
                mask_B1QP = _cut(visibility, queries, keys).mask(self.window)
                read[queries.start] = full_attention(q_BHQE[:, :, queries], k_BGPE, v_BGPE, mask_B1QP, dropout)
        return torch.cat([read[start] for start in sorted(read)], dim=2)

    def _tiles(self, visibility: Visibility) -> "Tiles | None":
        """Return how to cut the picture; None where it does not come first, all visible, or is soon done whole."""
        if not _from_nothing(visibility) or visibility.grid is None or visibility.segments[0].causal:
            return None
        first, (rows, columns) = visibility.segments[0], visibility.grid
        extra = first.end - first.start - rows * columns
        if extra < 0:
            return None
        axes = [Axis.along(side, self.window.image // 2) for side in (rows, columns)]
        pairs = math.prod(axis.count * axis.tile * axis.reached for axis in axes)
        if 2 * pairs > (rows * columns) ** 2 or not _is_plain_image(visibility.keys, first):
            return None
        return Tiles.of(axes[0], axes[1], extra, visibility.keys.step_BL.device)

    def _is_long_text(self, visibility: Visibility, segment: Segment) -> bool:
        """Whether it pays to cut this segment, of causal text, into chunks."""
        length = segment.end - segment.start
        if not _from_nothing(visibility) or not segment.causal or length < 2 * (_CHUNK + self.window.text):
            return False
        return not bool(visibility.keys.image_BL[:, segment.start : segment.end].any())

    def _parts(self, segments: tuple[Segment, ...], index: int, *, banded: bool) -> list[tuple[slice, list[slice]]]:
        """Return queries of a segment, and spans that hold all keys near them; the segment at once if not banded."""
        segment = segments[index]
        earlier = [slice(other.start, other.end) for other in segments[:index]]
        if not banded:
            whole = slice(segment.start, segment.end)
            return [(whole, [*earlier, whole])]
        # Chunks as long as a quarter of what each copies: the copies together stay linear in the text's length.
        chunk = max(_CHUNK, sum(span.stop - span.start for span in earlier) // 4)
        parts = []
        for a in range(segment.start, segment.end, chunk):
            b = min(a + chunk, segment.end)
            near = slice(max(segment.start, a - self.window.text + 1), b)
            parts.append((slice(a, b), [*earlier, near]))
        return parts


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How one side of a grid is cut: `count` tiles, the last one shifted back to end with the grid."""

    side: int
    reach: int
    tile: int  # cells of a tile
    reached: int  # cells of a tile and those around it

    @classmethod
    def along(cls, side: int, reach: int) -> "Axis":
        """Return tiles at least as wide as the window reaches, so that each cell lies near few of them."""
        tile = min(max(_TILE, reach), side)
        return cls(side=side, reach=reach, tile=tile, reached=min(tile + 2 * reach, side))

    @property
    def count(self) -> int:
        """Tiles."""
        return math.ceil(self.side / self.tile)

    def cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cell_AS of each tile, and cell_AW of its neighbourhood; both lie in the grid with all their cells."""
        start_A1 = (torch.arange(self.count, device=device) * self.tile).clamp_max(self.side - self.tile)[:, None]
        first_A1 = (start_A1 - self.reach).clamp(0, self.side - self.reached)
        cell_AS = start_A1 + torch.arange(self.tile, device=device)
        return cell_AS, first_A1 + torch.arange(self.reached, device=device)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A picture's tokens cut into tiles of cells, each with its neighbourhood and the class tokens."""

    extra: int  # class tokens before the cells
    query_TQ: Tensor  # each tile's cells, counted in tokens
    key_TK: Tensor  # the class tokens and the cells that one of the tile's may see
    near_TQK: Tensor
    place_N: Tensor  # where each cell stands among the T x Q queries

    @classmethod
    def of(cls, rows: Axis, columns: Axis, extra: int, device: torch.device) -> "Tiles":
        """Return the tiles of a grid of rows by columns, row by row."""
        (row_AS, row_AW), (column_AS, column_AW) = rows.cells(device), columns.cells(device)
        query_TQ = extra + _crossed(row_AS * columns.side, column_AS)
        key_TK = extra + _crossed(row_AW * columns.side, column_AW)
        near_rows_ASW = (row_AS[:, :, None] - row_AW[:, None]).abs() <= rows.reach
        near_columns_ASW = (column_AS[:, :, None] - column_AW[:, None]).abs() <= columns.reach
        near = near_rows_ASW[:, None, :, None, :, None] & near_columns_ASW[None, :, None, :, None, :]
        near_TQK = near.reshape(*query_TQ.shape, -1)
        class_TX = torch.arange(extra, device=device).expand(len(key_TK), -1)
        tile_rows_N, in_rows_N = _found(row_AS, rows)
        tile_columns_N, in_columns_N = _found(column_AS, columns)
        place_RC = (tile_rows_N[:, None] * columns.count + tile_columns_N) * rows.tile + in_rows_N[:, None]
        return cls(
            extra=extra,
            query_TQ=query_TQ,
            key_TK=torch.cat([class_TX, key_TK], dim=1),
            near_TQK=torch.cat([near_TQK.new_ones(*query_TQ.shape, extra), near_TQK], dim=2),
            place_N=(place_RC * columns.tile + in_columns_N).flatten(),
        )


def _crossed(row_AS: Tensor, column_AS: Tensor) -> Tensor:
    """Return cell_TQ: the sums of all rows and columns of a tile, for all pairs of tiles along the axes."""
    cell = row_AS[:, None, :, None] + column_AS[None, :, None, :]
    return cell.reshape(len(row_AS) * len(column_AS), -1)


def _found(cell_AS: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Return in which tile each cell of an axis is answered, and at which place in it."""
    cell_N = torch.arange(axis.side, device=cell_AS.device)
    tile_N = cell_N // axis.tile
    return tile_N, cell_N - cell_AS[tile_N, 0]


def _tiled_attention(q_BHNE: Tensor, k_BGNE: Tensor, v_BGNE: Tensor, tiles: Tiles, dropout: float) -> Tensor:
    """Return the attended values of a picture's tokens, BHNE."""
    batch = len(q_BHNE)
    q, k, v = _taken(q_BHNE, tiles.query_TQ), _taken(k_BGNE, tiles.key_TK), _taken(v_BGNE, tiles.key_TK)
    attended = full_attention(q, k, v, tiles.near_TQK.repeat(batch, 1, 1)[:, None], dropout)
    by_place = attended.transpose(1, 2).reshape(batch, tiles.query_TQ.numel(), *q_BHNE.shape[1::2])
    cells_BHNE = by_place.index_select(1, tiles.place_N).transpose(1, 2)
    if not tiles.extra:
        return cells_BHNE
    classes_BHXE = full_attention(q_BHNE[:, :, : tiles.extra], k_BGNE, v_BGNE, None, dropout)
    return torch.cat([classes_BHXE, cells_BHNE], dim=2)


def _taken(x_BHNE: Tensor, index_TK: Tensor) -> Tensor:
    """Return the tokens of each tile as a row of a batch of B x T: (BT)HKE."""
    taken = x_BHNE.transpose(1, 2).index_select(1, index_TK.flatten())
    return taken.view(-1, index_TK.shape[1], *x_BHNE.shape[1::2]).transpose(1, 2)


def _from_nothing(visibility: Visibility) -> bool:
    """Whether the segments tell the whole of it but for padding: queries are keys, with nothing cached before them."""
    return bool(visibility.segments) and not visibility.start and visibility.key_bias_BK is None


def _is_plain_image(tokens: Tokens, segment: Segment) -> bool:
    """Whether all of the segment's tokens are image tokens and none is padding."""
    plain_BL = tokens.image_BL if tokens.valid_BL is None else tokens.image_BL & tokens.valid_BL
    return bool(plain_BL[:, segment.start : segment.end].all())


def _cut(visibility: Visibility, queries: slice, keys: list[slice]) -> Visibility:
    """Return the visibility of some queries among some keys."""

    def at(span: slice) -> Tokens:
        tokens = visibility.keys
        return Tokens(
            step_BL=tokens.step_BL[:, span],
            place_BL=tokens.place_BL[:, span],
            image_BL=tokens.image_BL[:, span],
            valid_BL=None if tokens.valid_BL is None else tokens.valid_BL[:, span],
        )

    return Visibility(queries=at(queries), keys=join([at(span) for span in keys]), grid=visibility.grid)
