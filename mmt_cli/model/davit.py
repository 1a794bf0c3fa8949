"""DaViT, the vision tower of Florence-2: window attention and channel attention by turns (Ding et al. 2022).

B batch, C channels, H height, W width in pixels or cells, D width, N cells; R rows and C columns of windows,
M windows in all, S side of a window, K its cells; A heads, G groups of channels, E channels of a head or a group.

Maps are views of rows of cells, so that the convolutions read them as torch's channels-last layout, without a copy.
Stochastic depth is left out: it is for training from nothing alone.
"""

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.davit_config import DaViTConfig
from mmt_cli.model.kernel_full import full_attention
from mmt_cli.model.layers import ACTIVATIONS


class StageEmbedding(nn.Module):
    """A convolution that shrinks the map, with a layer norm before or behind it."""

    def __init__(self, config: DaViTConfig, stage: int) -> None:
        super().__init__()
        inputs = config.widths[stage - 1] if stage else config.channels
        width = config.widths[stage]
        self.norm_first = config.norm_first[stage]
        self.norm = nn.LayerNorm(inputs if self.norm_first else width)
        self.convolution = nn.Conv2d(
            inputs, width, config.patch_sizes[stage], stride=config.strides[stage], padding=config.paddings[stage]
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a smaller map, BDHW."""
        if self.norm_first:
            return cast("Tensor", self.convolution(self._normed(x_BCHW)))
        return self._normed(self.convolution(x_BCHW))

    def _normed(self, x_BDHW: Tensor) -> Tensor:
        return cast("Tensor", self.norm(x_BDHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class WindowAttention(nn.Module):
    """Self-attention of the cells of each window; windows tile the map from its top left corner.

    At the right and at the bottom the map is filled up with zeros, and these cells are attended to like all others.
    """

    def __init__(self, config: DaViTConfig, stage: int) -> None:
        super().__init__()
        width = config.widths[stage]
        self.num_heads, self.window = config.num_heads[stage], config.window
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return BND, for cells that lie row by row in a grid."""
        rows, columns = grid
        x_BHWD = torch.unflatten(x_BND, 1, grid)
        filled_BHWD = functional.pad(x_BHWD, (0, 0, 0, -columns % self.window, 0, -rows % self.window))
        x_MKD = windows_of(filled_BHWD, self.window)
        q_MAKE, k_MAKE, v_MAKE = self.qkv(x_MKD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y_MAKE = full_attention(q_MAKE, k_MAKE, v_MAKE, None, 0.0)
        y_BHWD = map_of(self.out(y_MAKE.transpose(1, 2).flatten(2)), filled_BHWD.shape, self.window)
        return y_BHWD[:, :rows, :columns].flatten(1, 2)


def windows_of(x_BHWD: Tensor, side: int) -> Tensor:
    """Return the map's square windows, row by row, each with its cells row by row, MKD."""
    batch, rows, columns, width = x_BHWD.shape
    x_BRSCSD = x_BHWD.reshape(batch, rows // side, side, columns // side, side, width)
    return x_BRSCSD.transpose(2, 3).reshape(-1, side * side, width)


def map_of(x_MKD: Tensor, shape: tuple[int, ...], side: int) -> Tensor:
    """Return the map, BHWD of this shape, that `windows_of` has cut up."""
    batch, rows, columns, width = shape
    x_BRCSSD = x_MKD.reshape(batch, rows // side, columns // side, side, side, width)
    return x_BRCSSD.transpose(2, 3).reshape(shape)


class ChannelAttention(nn.Module):
    """Attention from channel to channel of a group: the values of a channel in all cells are one token."""

    def __init__(self, config: DaViTConfig, stage: int) -> None:
        super().__init__()
        width = config.widths[stage]
        self.num_groups = config.num_groups[stage]
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return BND."""
        qkv_BN3GE = self.qkv(x_BND).unflatten(-1, (3, self.num_groups, -1))
        q_BGEN, k_BGEN, v_BGEN = qkv_BN3GE.permute(2, 0, 3, 4, 1)
        y_BGEN = full_attention(q_BGEN, k_BGEN, v_BGEN, None, 0.0)
        return cast("Tensor", self.out(y_BGEN.flatten(1, 2).transpose(1, 2).contiguous()))


class CellMlp(nn.Module):
    """Two linear maps with an activation between them, each cell by itself."""

    def __init__(self, config: DaViTConfig, stage: int) -> None:
        super().__init__()
        width, inner = config.widths[stage], config.mlp_widths[stage]
        self.up = nn.Linear(width, inner)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(inner, width)

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return BND."""
        return cast("Tensor", self.down(self.activation(self.up(x_BND))))


class MapResidual(nn.Module):
    """Two residuals: a cell's neighbours, channel by channel, which tell it where it stands; a sublayer, pre-norm."""

    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.inner = inner

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Return BDHW."""
        batch, width, rows, columns = x_BDHW.shape
        x_BDHW = self.neighbours(x_BDHW) + x_BDHW
        x_BND = x_BDHW.flatten(2).transpose(1, 2)
        x_BND = x_BND + self.inner(self.norm(x_BND), (rows, columns))
        return cast("Tensor", x_BND.transpose(1, 2).view(batch, width, rows, columns))


def _block(config: DaViTConfig, stage: int) -> nn.Module:
    """Return window attention → MLP → channel attention → MLP."""
    inner = {
        "window_attention": WindowAttention(config, stage),
        "window_mlp": CellMlp(config, stage),
        "channel_attention": ChannelAttention(config, stage),
        "channel_mlp": CellMlp(config, stage),
    }
    return nn.Sequential(OrderedDict((name, MapResidual(config.widths[stage], part)) for name, part in inner.items()))


class DaViTTower(nn.Module):
    """Stages, each a convolution that shrinks the map and then blocks; the last map's cells are the image tokens."""

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        self.config = config
        stages = range(len(config.widths))
        self.embeddings = nn.ModuleList(StageEmbedding(config, stage) for stage in stages)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_block(config, stage) for _ in range(config.depths[stage]))) for stage in stages
        )

    def forward(self, pixels_BCHW: Tensor) -> ImageTokens:
        """Return the image tokens, row by row: on 768 pixels a square, 24 x 24 cells for Florence-2."""
        grid = self.config.grid_of(*pixels_BCHW.shape[-2:])
        x_BDHW = pixels_BCHW
        for embedding, blocks in zip(self.embeddings, self.blocks, strict=True):
            x_BDHW = blocks(embedding(x_BDHW))
        return ImageTokens(x_BND=x_BDHW.flatten(2).transpose(1, 2), grid=grid)
