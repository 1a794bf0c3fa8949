"""Vision tower and connector: pixels → image tokens in the text's width.

B batch, C channels, H height, W width in pixels, N image tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.block import MergingBlock, plain_block
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig, TowerConfig
from mmt_cli.model.context import Context, ImageTokens
from mmt_cli.model.convnet import EfficientNetLite
from mmt_cli.model.davit import DaViTTower
from mmt_cli.model.davit_config import DaViTConfig, Florence2ConnectorConfig
from mmt_cli.model.dropout import Dropout
from mmt_cli.model.florence_connector import Florence2Connector
from mmt_cli.model.image_config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig, ProjectionConfig
from mmt_cli.model.layers import ACTIVATIONS, build_norm
from mmt_cli.model.mask import Visibility
from mmt_cli.model.position import build_positions, table_rows
from mmt_cli.model.reduction import build_reduction, reduced_width
from mmt_cli.model.rotary import build_rotary, image_places


class LinearPatches(nn.Linear):
    """Each patch, flattened, through one matrix (Dosovitskiy et al. 2021)."""

    def __init__(self, config: PatchTowerConfig) -> None:
        super().__init__(config.channels * config.patch_size**2, config.width, bias=config.patch_bias)
        self.patch_size = config.patch_size

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return x_BND."""
        # Each column of unfold is one patch, flattened as (channel, row, column), patches row by row.
        patches_BNP = functional.unfold(pixels_BCHW, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return super().forward(patches_BNP)


class ConvolutionPatches(nn.Conv2d):
    """The same map as a convolution with the patch as its kernel and stride: the layout of CLIP's checkpoints."""

    def __init__(self, config: PatchTowerConfig) -> None:
        size = config.patch_size
        super().__init__(config.channels, config.width, size, stride=size, bias=config.patch_bias)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return x_BND."""
        return super().forward(pixels_BCHW).flatten(2).transpose(1, 2)


PATCHES: dict[str, type[LinearPatches | ConvolutionPatches]] = {
    "linear": LinearPatches,
    "convolution": ConvolutionPatches,
}


class ImageBlocks(nn.ModuleList):
    """Blocks over images alone, where everything sees everything."""

    def __init__(self, config: BlockConfig, num_layers: int, num_tokens: int) -> None:
        super().__init__(plain_block(config, num_tokens) for _ in range(num_layers))
        self.rotary = build_rotary(config)
        self.axes = {"1d": 1, "2d": 2}.get(config.rope, 0)

    def forward(self, image: ImageTokens) -> ImageTokens:
        """Return the image tokens after every block."""
        x_BND = image.x_BND
        visibility = Visibility.of_image(x_BND.shape[1], image.grid, x_BND.device)
        rotation = None
        if self.rotary is not None:
            grid = image.grid or (1, x_BND.shape[1])  # merged tokens lie in no grid and are counted
            rotation = self.rotary(image_places(self.axes, grid, image.extra, x_BND.device)[None])
        context = Context(visibility=visibility, rotation=rotation)
        for block in self:
            x_BND = block(x_BND, context)
        return ImageTokens(x_BND=x_BND, grid=image.grid)


class MergingBlocks(nn.ModuleList):
    """Blocks that merge like tokens (ToMe, Bolya et al. 2023)."""

    def __init__(self, config: BlockConfig, num_layers: int, merged: int, extra: int) -> None:
        super().__init__(MergingBlock(config, merged, extra) for _ in range(num_layers))

    def forward(self, image: ImageTokens) -> ImageTokens:
        """Return fewer image tokens, which lie in no grid."""
        x_BND = image.x_BND
        size_BN = torch.ones_like(x_BND[..., 0], dtype=torch.float32)
        for block in self:
            x_BND, size_BN = block(x_BND, size_BN)
        return ImageTokens(x_BND=x_BND, grid=None)


class PatchTower(nn.Module):
    """A vision transformer: patches, positions, blocks (Dosovitskiy et al. 2021)."""

    def __init__(self, config: PatchTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = PATCHES[config.embedding](config)
        extra = config.class_tokens
        self.class_token = nn.Parameter(torch.zeros(extra, config.width)) if extra else None
        self.hidden = extra - config.extra_tokens  # class tokens that the text does not see
        rows = table_rows(config.positions, config.grid, extra)
        self.positions = nn.Parameter(torch.zeros(rows, config.width)) if rows else None
        self.place = build_positions(config.positions, config.width, config.grid, extra)
        self.embedding_norm = build_norm(config.block) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.block.dropout)
        cells = config.grid[0] * config.grid[1] + extra
        self.blocks = (
            ImageBlocks(config.block, config.num_layers, cells)
            if config.keeps_grid
            else MergingBlocks(config.block, config.num_layers, config.merged_tokens, extra)
        )
        self.norm = build_norm(config.block) if config.final_norm else nn.Identity()

    def forward(self, pixels_BCHW: Tensor) -> ImageTokens:
        """Return the image tokens, the class token first where there is one that leaves the tower."""
        grid = self.config.grid_of(*pixels_BCHW.shape[-2:])
        x_BND = self.embedding(pixels_BCHW)
        if self.class_token is not None:
            x_BND = torch.cat([self.class_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        x_BND = self.embedding_norm(_placed(x_BND, self.place(self.positions, grid, x_BND)))
        image: ImageTokens = self.blocks(ImageTokens(x_BND=self.dropout(x_BND), grid=grid))
        return ImageTokens(x_BND=self.norm(image.x_BND)[:, self.hidden :], grid=image.grid)


class ConvTower(nn.Module):
    """A convolutional tower whose last feature map, cell by cell, is the image tokens (hybrid ViT)."""

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__()
        self.features = EfficientNetLite(config.kind)

    def forward(self, pixels_BCHW: Tensor) -> ImageTokens:
        """Return image tokens: on 224 pixels a square, 7 x 7 cells of width 1,280."""
        features_BDHW: Tensor = self.features(pixels_BCHW)
        rows, columns = features_BDHW.shape[-2:]
        # A view of maps whose channels lie side by side, as fast convolutions leave them.
        return ImageTokens(x_BND=features_BDHW.permute(0, 2, 3, 1).flatten(1, 2), grid=(rows, columns))


class Connector(nn.Module):
    """Fewer tokens, a linear map to the text's width, positions, blocks over the image alone, and a norm."""

    def __init__(self, config: ConnectorConfig, tower: TowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        home = config.reduced(tower.grid) if tower.keeps_grid else None
        extra = tower.extra_tokens
        cells = tower.num_tokens - extra if home is None else home[0] * home[1]
        self.reduce = build_reduction(config)
        self.projection = nn.Linear(reduced_width(config, tower.width), width)
        rows = table_rows(config.positions, home or (1, cells), extra)
        self.positions = nn.Parameter(torch.zeros(rows, width)) if rows else None
        self.place = build_positions(config.positions, width, home, extra)
        self.dropout = Dropout(config.block.dropout)
        self.blocks = ImageBlocks(config.block, config.num_layers, cells + extra)
        self.norm = build_norm(config.block)

    def forward(self, image: ImageTokens) -> ImageTokens:
        """Return image tokens in the connector's width."""
        grid = None if image.grid is None else self.config.reduced(image.grid)
        x_BND = self.projection(self.reduce(image.x_BND, image.grid))
        x_BND = self.dropout(_placed(x_BND, self.place(self.positions, grid, x_BND)))
        image = self.blocks(ImageTokens(x_BND=x_BND, grid=grid))
        return ImageTokens(x_BND=self.norm(image.x_BND), grid=grid)


class Projection(nn.Module):
    """Fewer tokens, a norm, one linear map or two with an activation between them, and a norm."""

    def __init__(self, config: ProjectionConfig, tower: TowerConfig) -> None:
        super().__init__()
        self.config = config
        inputs, inner = reduced_width(config, tower.width), config.hidden_width
        self.reduce = build_reduction(config)
        self.input_norm = nn.LayerNorm(inputs, config.norm_eps) if config.input_norm else nn.Identity()
        first = nn.Linear(inputs, config.width if inner is None else inner, bias=config.bias)
        second = [] if inner is None else [nn.Linear(inner, config.width, bias=config.bias)]
        activation = [ACTIVATIONS[config.activation]() for _ in second]
        self.layers = nn.Sequential(first, *activation, *second)
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.output_norm else nn.Identity()

    def forward(self, image: ImageTokens) -> ImageTokens:
        """Return image tokens in the text's width."""
        grid = None if image.grid is None else self.config.reduced(image.grid)
        x_BND = self.layers(self.input_norm(self.reduce(image.x_BND, image.grid)))
        return ImageTokens(x_BND=self.norm(x_BND), grid=grid)


def _placed(x_BND: Tensor, positions_ND: Tensor | None) -> Tensor:
    return x_BND if positions_ND is None else x_BND + positions_ND


def build_tower(config: TowerConfig) -> nn.Module:
    """Return the tower that the config describes."""
    match config:
        case PatchTowerConfig():
            return PatchTower(config)
        case DaViTConfig():
            return DaViTTower(config)
        case _:
            return ConvTower(config)


def build_connector(config: ModelConfig) -> nn.Module:
    """Return the connector that the config describes, or what leaves the tower's tokens as they are."""
    match config.connector:
        case None:
            return nn.Identity()
        case ProjectionConfig() as projection:
            return Projection(projection, config.vision)
        case Florence2ConnectorConfig() as florence:
            return Florence2Connector(florence, config.vision.width)
        case ConnectorConfig() as blocks:
            return Connector(blocks, config.vision)
