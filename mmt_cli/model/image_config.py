"""The configuration of the image's side: vision towers and connector."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from mmt_cli.errors import ConfigError
from mmt_cli.model.block_config import Activation, BlockConfig
from mmt_cli.model.schema import Config, bounded
from mmt_cli.model.tower_config import TowerBaseConfig

GridPositions = Literal["none", "learned", "learned_2d", "sincos_2d"]
Reduction = Literal["none", "pixel_shuffle", "average"]


@dataclass(frozen=True, kw_only=True)
class PatchTowerConfig(TowerBaseConfig):
    """Image cut into square patches, each mapped to a token, positions, `num_layers` blocks (ViT)."""

    kind: Literal["patches"] = "patches"
    patch_size: int = bounded(1, 8_192, 16)
    channels: int = bounded(1, 64, 3)
    embedding: Literal["linear", "convolution"] = "linear"
    positions: GridPositions = "learned"
    block: BlockConfig
    num_layers: int = bounded(0, 512)
    merged_tokens: int = bounded(0, 65_536, 0)  # pairs of like tokens that become one, in each block (ToMe)
    patch_bias: bool = True
    cuts_patches: bool = False  # pixels beyond the last whole patch go unseen, as a convolution leaves them
    class_token: bool = False
    distillation_token: bool = False  # a second one behind the class token (DeiT)
    leaves_class_token: bool = True  # the text sees it, too
    embedding_norm: bool = False  # before the blocks (CLIP)
    final_norm: bool = False

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        if self.image_size % self.patch_size and not self.cuts_patches:
            raise ConfigError(
                f"patches do not tile the image (patch_size {self.patch_size}, image_size {self.image_size}); fit them"
            )
        self.grid_of(self.image_size, self.image_size)
        if self.distillation_token and not self.class_token:
            raise ConfigError(
                "a distillation token stands behind a class token (vision.distillation_token true, "
                "vision.class_token false); set both"
            )
        if self.merged_tokens and (self.block.kernel.kind != "full" or self.block.rope != "none"):
            part = self.block.kernel.kind if self.block.rope == "none" else f"rope {self.block.rope}"
            raise ConfigError(
                f"merged tokens lie in no grid (vision.merged_tokens {self.merged_tokens}, vision.block {part}); "
                "use the full kernel without rope"
            )
        _check_grid_positions("vision", self.positions, self.width)
        _check_image_block("vision", self.block)

    @property
    def width(self) -> int:
        """Width of one image token."""
        return self.block.width

    def tokens_of(self, grid: tuple[int, int]) -> int:
        """Return the image tokens: the patches, less those merged, and the class token where there is one."""
        return grid[0] * grid[1] - self.num_layers * self.merged_tokens + self.extra_tokens

    @property
    def class_tokens(self) -> int:
        """Tokens that stand before the patches in the tower."""
        return self.class_token + self.distillation_token

    @property
    def extra_tokens(self) -> int:
        """Tokens that stand before the patches where they leave the tower."""
        return self.class_tokens if self.leaves_class_token else 0

    @property
    def keeps_grid(self) -> bool:
        """Whether each token still is one cell of the grid."""
        return not (self.merged_tokens and self.num_layers)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of an image of these sides in pixels.

        Raises:
            ConfigError: some pixels would go unseen, or a block would have too few patches to merge.
        """
        rest = 0 if self.cuts_patches else height % self.patch_size or width % self.patch_size
        if min(height, width) < self.patch_size or rest:
            raise ConfigError(
                f"patches do not tile the image (patch_size {self.patch_size}, {height} x {width} pixels); resize it"
            )
        rows, columns = height // self.patch_size, width // self.patch_size
        before_last = rows * columns - (self.num_layers - 1) * self.merged_tokens
        if self.num_layers and 2 * self.merged_tokens > before_last:
            raise ConfigError(
                f"a block can merge half of its tokens at most (merged_tokens {self.merged_tokens} in each of "
                f"{self.num_layers} layers, {rows * columns} patches); merge fewer"
            )
        return rows, columns


@dataclass(frozen=True, kw_only=True)
class ConvTowerConfig(TowerBaseConfig):
    """EfficientNet-Lite without its classifier; the last feature map's cells are the image tokens."""

    kind: Literal["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"] = "efficientnet_lite0"
    image_size: int = bounded(32, 2_048, 224)
    class_token: ClassVar[bool] = False
    extra_tokens: ClassVar[int] = 0
    keeps_grid: ClassVar[bool] = True
    channels: ClassVar[int] = 3
    width: ClassVar[int] = 1_280

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the feature map, whose sides are a 32nd of the image's, rounded up.

        Raises:
            ConfigError: the image is too small to give a cell.
        """
        if min(height, width) < 32:
            raise ConfigError(f"the image is too small ({height} x {width} pixels, least 32 x 32); enlarge it")
        return math.ceil(height / 32), math.ceil(width / 32)


@dataclass(frozen=True, kw_only=True)
class ReductionConfig(Config):
    """Fewer tokens than the tower gives."""

    reduction: Reduction = "none"
    reduction_factor: int = bounded(1, 64, 2)  # side of the square of cells that becomes one token

    def reduced(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the grid that is left of `grid`.

        Raises:
            ConfigError: pixel shuffle would leave cells over.
        """
        if self.reduction == "none":
            return grid
        rows, columns = grid
        factor = self.reduction_factor
        if self.reduction == "pixel_shuffle" and (rows % factor or columns % factor):
            raise ConfigError(
                f"pixel shuffle leaves cells over (connector.reduction_factor {factor}, "
                f"{rows} x {columns} cells); use a divisor, or reduction average"
            )
        return math.ceil(rows / factor), math.ceil(columns / factor)

    def shape_of(self, grid: tuple[int, int], extra: int) -> tuple[tuple[int, int] | None, int]:
        """Return the grid that is left of `grid`, and how many tokens there are with `extra` class tokens.

        Raises:
            ConfigError: pixel shuffle would leave cells over.
        """
        reduced = self.reduced(grid)
        return reduced, reduced[0] * reduced[1] + extra


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(ReductionConfig):
    """From the tower's tokens to the text's width: fewer tokens, a norm, one linear map or an MLP of two, a norm."""

    kind: Literal["projection"] = "projection"
    width: int = bounded(1, 65_536)
    hidden_width: int | None = bounded(1, 262_144, None)  # between two maps; None: one map
    activation: Activation = "gelu"  # between two maps
    bias: bool = True
    input_norm: bool = False
    output_norm: bool = False
    norm_eps: float = bounded(1e-12, 1.0, 1e-5)


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig(ReductionConfig):
    """From the tower's tokens to the text's width: fewer tokens, a linear map, blocks over the image, a norm."""

    kind: Literal["linear"] = "linear"
    positions: GridPositions = "none"  # for towers whose tokens carry none
    block: BlockConfig
    num_layers: int = bounded(0, 512, 0)

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        _check_grid_positions("connector", self.positions, self.block.width)
        _check_image_block("connector", self.block)

    @property
    def width(self) -> int:
        """Width of the tokens that it makes."""
        return self.block.width


def _check_grid_positions(part: str, positions: str, width: int) -> None:
    """Raise ConfigError where sines and cosines of two axes do not fill the width."""
    if positions == "sincos_2d" and width % 4:
        raise ConfigError(f"sines of two axes need a width that 4 divides ({part} {width}, sincos_2d); fit them")


def _check_image_block(part: str, block: BlockConfig) -> None:
    """Raise ConfigError for what only a block that reads text can have."""
    if block.rope == "multimodal":
        raise ConfigError(f"an image alone has one modality ({part}.block.rope multimodal); use 2d")
    if block.experts != "none":
        raise ConfigError(f"an image alone has one modality ({part}.block.experts {block.experts}); use none")
