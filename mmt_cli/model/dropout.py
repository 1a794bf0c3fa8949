"""Dropout that does not hold up a CPU."""

import torch
from torch import Tensor, nn

_PER_DRAW = 4  # 16-bit numbers in one of 64 bits
_STEPS = 2**16


class Dropout(nn.Dropout):
    """Zero each element with probability `p`, and scale the others up.

    torch draws one number an element on a CPU, in one thread: ten times as long as the activation beside it takes.
    Here four elements share the bits of one number, so that `p` is rounded to 1/65536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with elements dropped while training; any shape."""
        if not self.training:
            return x
        if not 0.0 < self.p < 1.0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = int(self.p * _STEPS)
        draws = torch.empty(-(-x.numel() // _PER_DRAW), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _STEPS // 2
        return x * kept.to(x.dtype).mul_(_STEPS / (_STEPS - dropped))
