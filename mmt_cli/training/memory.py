"""How much memory training takes, and less of it: activations computed again in the backward pass instead of kept."""

import resource
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmt_cli.model.block import Block, MergingBlock


class Recomputed(nn.Module):
    """Keeps only its input for the backward pass, and then runs forward again (Chen et al. 2016).

    The second run draws the same dropout and casts as the first under autocast, so gradients stay the same to the bit.
    """

    def forward(self, *inputs: Any) -> Any:
        """Return what the class that this one is mixed into returns."""
        if not torch.is_grad_enabled():
            return super().forward(*inputs)
        return checkpoint(super().forward, *inputs, use_reentrant=False)


class RecomputedBlock(Recomputed, Block):
    """A block of tower, connector or decoder."""


class RecomputedMergingBlock(Recomputed, MergingBlock):
    """A block of a tower that merges tokens."""


RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {Block: RecomputedBlock, MergingBlock: RecomputedMergingBlock}


def checkpoint_blocks(model: nn.Module) -> None:
    """Have every block of the model, in tower, connector and decoder, recomputed, in place.

    The class alone changes: weights, their names, and copies of the model stay what they are.
    """
    for module in model.modules():
        module.__class__ = RECOMPUTED.get(type(module), type(module))


def peak_memory(device: torch.device) -> int:
    """Return the bytes that were in use at most so far: on a GPU by tensors, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere in KiB
