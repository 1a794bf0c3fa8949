"""Training in less memory: activations computed again in the backward pass instead of kept.

B batch, L sequence, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmt_cli.model.block import Block
from mmt_cli.model.context import Context


class RecomputedBlock(Block):
    """A block that keeps only its input for the backward pass, and then runs forward again (Chen et al. 2016).

    The second run draws the same dropout and casts as the first under autocast, so gradients stay the same to the bit.
    """

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return what the block returns."""
        if not torch.is_grad_enabled():
            return super().forward(x_BLD, context)
        return cast("Tensor", checkpoint(super().forward, x_BLD, context, use_reentrant=False))


def checkpoint_blocks(model: nn.Module) -> None:
    """Make every block of the model, in tower, connector and decoder, a `RecomputedBlock`, in place.

    The class alone changes: weights, their names, and copies of the model stay what they are.
    """
    for module in model.modules():
        if type(module) is Block:
            module.__class__ = RecomputedBlock
