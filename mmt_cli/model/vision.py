"""Vision tower and connector: pixels → image tokens in the text's width.

B batch, C channels, H height, W width in pixels, N image tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.attention import Context
from mmt_cli.model.block import Block
from mmt_cli.model.config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig
from mmt_cli.model.convnet import EfficientNetLite0
from mmt_cli.model.position import learned_positions


class PatchTower(nn.Module):
    """A vision transformer: patches, one linear map, learned positions, blocks (Dosovitskiy et al. 2021)."""

    def __init__(self, config: PatchTowerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.embedding = nn.Linear(config.channels * config.patch_size**2, config.width)
        self.class_token = nn.Parameter(torch.zeros(1, config.width)) if config.class_token else None
        self.positions = learned_positions(config.num_tokens, config.width)
        self.dropout = nn.Dropout(config.block.dropout)
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=config.block.norm_eps) if config.final_norm else nn.Identity()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return image tokens BND, the class token first where there is one."""
        # Each column of unfold is one patch, flattened as (channel, row, column), patches row by row.
        patches_BNP = functional.unfold(pixels_BCHW, self.patch_size, stride=self.patch_size).transpose(1, 2)
        x_BND = self.embedding(patches_BNP)
        if self.class_token is not None:
            x_BND = torch.cat([self.class_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        x_BND = self.dropout(x_BND + self.positions)
        for block in self.blocks:
            x_BND = block(x_BND, Context())
        normed: Tensor = self.norm(x_BND)
        return normed


class ConvTower(nn.Module):
    """A convolutional tower whose last feature map, cell by cell, is the image tokens (hybrid ViT)."""

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__()
        self.features = EfficientNetLite0()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return image tokens BND: on 224 pixels a square, 7 x 7 cells of width 1,280."""
        features_BDHW: Tensor = self.features(pixels_BCHW)
        return features_BDHW.flatten(2).transpose(1, 2)


class Connector(nn.Module):
    """A linear map to the text's width, learned positions, blocks over the image alone, and a norm."""

    def __init__(self, config: ConnectorConfig, *, tower_width: int, num_tokens: int) -> None:
        super().__init__()
        width = config.block.width
        self.projection = nn.Linear(tower_width, width)
        self.positions = learned_positions(num_tokens, width) if config.positions else None
        self.dropout = nn.Dropout(config.block.dropout)
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, eps=config.block.norm_eps)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return image tokens BND in the connector's width."""
        x_BND = self.projection(tokens_BND)
        if self.positions is not None:
            x_BND = x_BND + self.positions
        x_BND = self.dropout(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND, Context())
        normed: Tensor = self.norm(x_BND)
        return normed


def build_tower(config: PatchTowerConfig | ConvTowerConfig) -> PatchTower | ConvTower:
    """Return the tower that the config describes."""
    return PatchTower(config) if isinstance(config, PatchTowerConfig) else ConvTower(config)
