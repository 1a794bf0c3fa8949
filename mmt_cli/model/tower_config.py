"""What the configurations of all vision towers offer."""

from dataclasses import dataclass

from mmt_cli.model.schema import Config, bounded


@dataclass(frozen=True, kw_only=True)
class TowerBaseConfig(Config):
    """A tower that turns an image into cells of a grid; how many there are is the subclass's."""

    image_size: int = bounded(1, 8_192, 224)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of an image of these sides in pixels.

        Raises:
            ConfigError: the tower cannot read such an image.
        """
        raise NotImplementedError

    def tokens_of(self, grid: tuple[int, int]) -> int:
        """Return the image tokens: the cells of the grid."""
        return grid[0] * grid[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the cells of an image of `image_size`."""
        return self.grid_of(self.image_size, self.image_size)

    @property
    def num_tokens(self) -> int:
        """Image tokens of an image of `image_size`."""
        return self.tokens_of(self.grid)
