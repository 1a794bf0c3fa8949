"""Florence-2's connector: the tower's map → image tokens in the text's width (Xiao et al. 2024).

B batch, N cells, D width, R rows and C columns of the grid, E half the width.
"""

import torch
from torch import Tensor, nn

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.davit_config import Florence2ConnectorConfig


class Florence2Connector(nn.Module):
    """Positions, the average of all cells as a token before them, a linear map, and a norm."""

    def __init__(self, config: Florence2ConnectorConfig, tower_width: int) -> None:
        super().__init__()
        self.config = config
        half = tower_width // 2
        self.row_positions = nn.Parameter(torch.zeros(config.max_side, half))
        self.column_positions = nn.Parameter(torch.zeros(config.max_side, tower_width - half))
        self.projection = nn.Linear(tower_width, config.width, bias=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, image: ImageTokens) -> ImageTokens:
        """Return 1 + N image tokens, which lie in no grid any more."""
        assert image.grid is not None, "a map without rows and columns"
        self.config.shape_of(image.grid, image.extra)
        x_BND = image.x_BND + self._places(image.grid) + _first_time(image.x_BND)
        x_BND = torch.cat([x_BND.mean(dim=1, keepdim=True), x_BND], dim=1)
        return ImageTokens(x_BND=self.norm(self.projection(x_BND)), grid=None)

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """Return the positions of the cells, ND: the column's in the first half of the width, then the row's."""
        rows, columns = grid
        column_RCE = self.column_positions[:columns].expand(rows, -1, -1)
        row_RCE = self.row_positions[:rows, None].expand(-1, columns, -1)
        return torch.cat([column_RCE, row_RCE], dim=2).flatten(0, 1)


def _first_time(x_BND: Tensor) -> Tensor:
    """Return the position in time of the first and only frame, D.

    Sine and cosine by turns, whose angles are all 0: 0, 1, 0, 1 …
    """
    return (torch.arange(x_BND.shape[-1], device=x_BND.device) % 2).to(x_BND.dtype)
