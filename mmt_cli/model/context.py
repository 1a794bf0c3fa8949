"""What the parts of the core hand to each other.

B batch, N image tokens, L sequence, M memory (image) tokens, S summary, D width, R rows.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.mask import Visibility
from mmt_cli.model.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images cut into tiles, as many as each needs.

    Attributes:
        tiles_NCHW: all tiles, image by image.
        count_B: how many of them each image has, at least one.
    """

    tiles_NCHW: Tensor
    count_B: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """What the text looks at: images as tower or connector give them, or what a prompt encoder made of them."""

    x_BND: Tensor
    grid: tuple[int, int] | None  # rows and columns of the cells, class tokens before them; None: no grid any more
    valid_BN: Tensor | None = None  # False at what fills up rows of fewer tokens, behind them; None: all are full

    def __len__(self) -> int:
        return len(self.x_BND)

    def __getitem__(self, row_R: Tensor | slice) -> "ImageTokens":
        valid_RN = None if self.valid_BN is None else self.valid_BN[row_R]
        return ImageTokens(x_BND=self.x_BND[row_R], grid=self.grid, valid_BN=valid_RN)

    def repeated(self, count: int) -> "ImageTokens":
        """Return each image `count` times, behind each other."""
        return self[torch.arange(len(self), device=self.x_BND.device).repeat_interleave(count)]

    def gathered(self, count_B: tuple[int, ...]) -> "ImageTokens":
        """Return one row an image for rows that are tiles, `count_B` of each image behind each other."""
        tokens, width = self.x_BND.shape[1:]
        if len(set(count_B)) == 1:
            return ImageTokens(x_BND=self.x_BND.reshape(len(count_B), -1, width), grid=None)
        images = [part.flatten(0, 1) for part in torch.split(self.x_BND, list(count_B))]
        length_B1 = torch.tensor(count_B, device=self.x_BND.device)[:, None] * tokens
        valid_BN = torch.arange(max(map(len, images)), device=self.x_BND.device) < length_B1
        return ImageTokens(x_BND=nn.utils.rnn.pad_sequence(images, batch_first=True), grid=None, valid_BN=valid_BN)

    @property
    def extra(self) -> int:
        """Class tokens before the cells."""
        return 0 if self.grid is None else self.x_BND.shape[1] - self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the sublayers of a block may look at besides the sequence itself."""

    visibility: Visibility
    rotation: Rotation | None = None
    image_BL: Tensor | None = None  # True at image tokens, for experts; None where all are text
    memory_BMD: Tensor | None = None
    memory_mask_B11M: Tensor | None = None  # False at padding of the memory; None where there is none
    summary_BLS: Tensor | None = None  # what each token may know of both modalities, for gates
    cache: LayerCache | None = None
    text: slice | None = None  # in the last block, where text alone is read out: what goes on behind self-attention

    def of_text(self) -> "Context":
        """Return what holds for the text alone."""
        assert self.text is not None, "all goes on"
        summary_BLS = None if self.summary_BLS is None else self.summary_BLS[:, self.text]
        return dataclasses.replace(self, image_BL=None, summary_BLS=summary_BLS, text=None)

    @property
    def has_memory(self) -> bool:
        """Whether there is an image to attend to beside the sequence."""
        return self.memory_BMD is not None or (self.cache is not None and self.cache.memory is not None)
