"""What the parts of the core hand to each other.

B batch, N image tokens, L sequence, M memory (image) tokens, S summary, D width, R rows.
"""

from dataclasses import dataclass

from torch import Tensor

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.mask import Visibility
from mmt_cli.model.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """Images as the tower or the connector gives them; as many tokens in each row."""

    x_BND: Tensor
    grid: tuple[int, int] | None  # rows and columns of the cells, class tokens before them; None: no grid any more

    def __len__(self) -> int:
        return len(self.x_BND)

    def __getitem__(self, row_R: Tensor | slice) -> "ImageTokens":
        return ImageTokens(x_BND=self.x_BND[row_R], grid=self.grid)

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
    summary_BLS: Tensor | None = None  # what each token may know of both modalities, for gates
    cache: LayerCache | None = None

    @property
    def has_memory(self) -> bool:
        """Whether there is an image to attend to beside the sequence."""
        return self.memory_BMD is not None or (self.cache is not None and self.cache.memory is not None)
