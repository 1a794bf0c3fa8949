"""Masks are data: each token carries a step, and sees the tokens whose step is not later than its own.

B batch (1 where all rows agree), L sequence, Q queries, K keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NO_PLACE = -1


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What masks and kernels know of each token."""

    step_BL: Tensor  # integers
    place_BL: Tensor  # its index among the tokens of its modality; NO_PLACE for a class token, which has none
    image_BL: Tensor  # True at image tokens
    valid_BL: Tensor | None = None  # False at padding; None where there is none


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of tokens: one after another (causal), or all at the same step."""

    start: int
    end: int
    causal: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """How far a token sees within its modality: a square of cells around it, or the nearest words.

    Of causal text these are the last `text` words, the reading one among them; where words see those to come, as many
    of those.
    """

    image: int  # side of the square, odd
    text: int


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Who sees whom in one pass: the queries are the new tokens, the keys all tokens up to and with them."""

    queries: Tokens
    keys: Tokens
    segments: tuple[Segment, ...] = ()  # the queries in order of their steps; empty where rows differ
    grid: tuple[int, int] | None = None  # rows and columns of the image's cells, which its places count row by row
    key_bias_BK: Tensor | None = None  # added to every score of a key
    start: int | Tensor = 0  # keys before the first query: what a cache holds; on the device a 1-element tensor
    masks: dict[Window | None, Tensor | None] = field(default_factory=dict)  # made once for all layers

    @classmethod
    def of_image(
        cls, length: int, grid: tuple[int, int] | None, device: torch.device, key_bias_BK: Tensor | None = None
    ) -> "Visibility":
        """Return that of an image alone, where everything sees everything.

        Args:
            length: image tokens; those before the grid's are class tokens.
            grid: rows and columns; None where tokens have been merged.
            device: where the model runs.
            key_bias_BK: added to every score of a key.
        """
        tokens = image_tokens(length, grid, device)
        segments = (Segment(start=0, end=length, causal=False),)
        return cls(queries=tokens, keys=tokens, segments=segments, grid=grid, key_bias_BK=key_bias_BK)

    def mask(self, window: Window | None = None) -> Tensor | None:
        """Return what the queries see of the keys.

        Only keys are masked for padding, for a query row that sees nothing would be NaN.

        Returns:
            mask_B1QK: bool, True where a query sees a key; with a key bias float, to be added to the scores; None when
            nothing is hidden, which keeps the fast kernels.
        """
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: Window | None) -> Tensor | None:
        bias_B11K = None if self.key_bias_BK is None else self.key_bias_BK[:, None, None]
        if window is None and self._hides_nothing():
            return bias_B11K
        mask_BQK = self.keys.step_BL[:, None, :] <= self.queries.step_BL[:, :, None]
        if self.keys.valid_BL is not None:
            mask_BQK = mask_BQK & self.keys.valid_BL[:, None, :]
        if window is not None:
            mask_BQK = mask_BQK & self._near(window)
        if bias_B11K is None:
            return mask_BQK[:, None]
        return bias_B11K.where(mask_BQK[:, None], -torch.inf)

    def _hides_nothing(self) -> bool:
        """Whether the segments alone say so; a look at the data would wait for a GPU."""
        slots_to_come = isinstance(self.start, Tensor)
        if self.keys.valid_BL is not None or len(self.segments) != 1 or slots_to_come:
            return False
        only = self.segments[0]
        return not only.causal or only.end - only.start == 1

    def _near(self, window: Window) -> Tensor:
        """Return near_BQK: False where two cells, or two words, lie too far apart."""
        queries, keys = self.queries, self.keys
        place_BQ1, place_B1K = queries.place_BL[:, :, None], keys.place_BL[:, None, :]
        image_BQ1, image_B1K = queries.image_BL[:, :, None], keys.image_BL[:, None, :]
        near_BQK = image_BQ1 | image_B1K | ((place_BQ1 - place_B1K).abs() < window.text)
        if self.grid is None or self.start:  # no image, or it came with the first tokens: what follows is text
            return near_BQK
        columns, reach = self.grid[1], window.image // 2
        far_BQK = (place_BQ1 // columns - place_B1K // columns).abs() > reach
        far_BQK = far_BQK | ((place_BQ1 % columns - place_B1K % columns).abs() > reach)
        cells_BQK = image_BQ1 & image_B1K & (place_BQ1 != NO_PLACE) & (place_B1K != NO_PLACE)
        return near_BQK & ~(cells_BQK & far_BQK)


def image_tokens(length: int, grid: tuple[int, int] | None, device: torch.device) -> Tokens:
    """Return the facts about an image whose tokens all stand at step 0; those before the grid's are class tokens."""
    cells = length if grid is None else grid[0] * grid[1]
    place_L = torch.arange(length, device=device) - (length - cells)
    return Tokens(
        step_BL=torch.zeros(1, length, dtype=torch.long, device=device),
        place_BL=place_L.clamp_min(NO_PLACE)[None],
        image_BL=torch.ones(1, length, dtype=torch.bool, device=device),
    )


def join(parts: Sequence[Tokens]) -> Tokens:
    """Return the facts about sequences that follow each other."""

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        rows = max(map(len, tensors))
        return torch.cat([tensor.expand(rows, -1) for tensor in tensors], dim=1)

    padded = any(part.valid_BL is not None for part in parts)
    valid = [torch.ones_like(part.image_BL) if part.valid_BL is None else part.valid_BL for part in parts]
    return Tokens(
        step_BL=joined([part.step_BL for part in parts]),
        place_BL=joined([part.place_BL for part in parts]),
        image_BL=joined([part.image_BL for part in parts]),
        valid_BL=joined(valid) if padded else None,
    )
