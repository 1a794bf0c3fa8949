"""The configuration of Florence-2's image side: the DaViT tower and the connector behind it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mmt_cli.errors import ConfigError
from mmt_cli.model.block_config import Activation
from mmt_cli.model.schema import Config, bounded
from mmt_cli.model.tower_config import TowerBaseConfig


@dataclass(frozen=True, kw_only=True)
class DaViTConfig(TowerBaseConfig):
    """Stages of a shrinking map, whose blocks attend within windows, then from channel to channel (Ding et al. 2022).

    Each tuple holds one value a stage. The defaults are Florence-2-base's.
    """

    kind: Literal["davit"] = "davit"
    image_size: int = bounded(1, 8_192, 768)
    channels: int = bounded(1, 64, 3)
    widths: tuple[int, ...] = bounded(1, 65_536, (128, 256, 512, 1_024))
    depths: tuple[int, ...] = bounded(0, 512, (1, 1, 9, 1))  # blocks
    num_heads: tuple[int, ...] = bounded(1, 1_024, (4, 8, 16, 32))  # of window attention
    num_groups: tuple[int, ...] = bounded(1, 1_024, (4, 8, 16, 32))  # of channels that attend to each other
    patch_sizes: tuple[int, ...] = bounded(1, 256, (7, 3, 3, 3))  # sides of the convolution before the blocks
    strides: tuple[int, ...] = bounded(1, 256, (4, 2, 2, 2))
    paddings: tuple[int, ...] = bounded(0, 256, (3, 1, 1, 1))
    norm_first: tuple[bool, ...] = (False, True, True, True)  # whether the norm stands before the convolution
    window: int = bounded(1, 1_024, 12)  # side of the square of cells that attend to each other
    mlp_ratio: float = bounded(1e-6, 64.0, 4.0)
    qkv_bias: bool = True
    activation: Activation = "gelu"
    class_token: ClassVar[bool] = False
    extra_tokens: ClassVar[int] = 0
    keeps_grid: ClassVar[bool] = True

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        stages = len(self.widths)
        if not 1 <= stages <= 16:
            raise ConfigError(f"the tower has too few or many stages (found {stages}, allowed 1 to 16); change widths")
        for name in ("depths", "num_heads", "num_groups", "patch_sizes", "strides", "paddings", "norm_first"):
            found = len(getattr(self, name))
            if found != stages:
                raise ConfigError(f"stages do not meet (widths {stages}, {name} {found} values); give one a stage")
        for name in ("num_heads", "num_groups"):
            for width, parts in zip(self.widths, getattr(self, name), strict=True):
                if width % parts:
                    raise ConfigError(f"{name} do not divide the width ({name} {parts}, width {width}); fit them")
        if min(self.mlp_widths) < 1:
            raise ConfigError(
                f"the MLP has no width (mlp_ratio {self.mlp_ratio}, widths {min(self.widths)}); enlarge one"
            )
        self.grid_of(self.image_size, self.image_size)

    @property
    def width(self) -> int:
        """Width of one image token."""
        return self.widths[-1]

    @property
    def mlp_widths(self) -> tuple[int, ...]:
        """Inner width of the MLPs of each stage."""
        return tuple(int(width * self.mlp_ratio) for width in self.widths)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last map of an image of these sides in pixels.

        Raises:
            ConfigError: a convolution would have no place for its patch.
        """
        rows, columns = height, width
        for stage, (size, stride, padding) in enumerate(
            zip(self.patch_sizes, self.strides, self.paddings, strict=True)
        ):
            if min(rows, columns) + 2 * padding < size:
                raise ConfigError(
                    f"the image is too small ({height} x {width} pixels, patch_sizes {size} at stage {stage} "
                    f"where {rows} x {columns} are left); enlarge it"
                )
            rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (rows, columns))
        return rows, columns


@dataclass(frozen=True, kw_only=True)
class Florence2ConnectorConfig(Config):
    """From the tower's map to the text's width: positions of rows and columns, an average token, a map and a norm."""

    kind: Literal["florence2"] = "florence2"
    width: int = bounded(1, 65_536)
    max_side: int = bounded(1, 8_192, 50)  # rows, and columns, that have a position
    reduction: ClassVar[Literal["none"]] = "none"

    def shape_of(self, grid: tuple[int, int], extra: int) -> tuple[None, int]:
        """Return that no grid is left of `grid`, and how many tokens there are: the average of all cells, the cells.

        Raises:
            ConfigError: there are more rows or columns than positions, or class tokens (`extra`), which have none.
        """
        if extra:
            raise ConfigError(
                f"a class token lies in no grid (vision has {extra}, connector.kind {self.kind}); leave one out"
            )
        if max(grid) > self.max_side:
            raise ConfigError(
                f"the image is too large (connector.max_side {self.max_side}, {grid[0]} x {grid[1]} cells); shrink it"
            )
        return None, 1 + grid[0] * grid[1]
