"""Where a token stands: learned tables, and text positions that skip padding.

B batch, T text tokens, D width.
"""

import torch
from torch import Tensor, nn


def learned_positions(count: int, width: int) -> nn.Parameter:
    """Return a table of `count` learned positions, added to the tokens in order."""
    return nn.Parameter(torch.zeros(count, width))


def text_positions(token_ids_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Return position_BT: 0, 1, 2 … over the valid tokens of each row; padding repeats the last one."""
    if valid_BT is None:
        return torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device)[None]
    return (valid_BT.cumsum(dim=1) - 1).clamp_min(0)
