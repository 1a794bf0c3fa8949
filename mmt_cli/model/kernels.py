"""Attention kernels: how queries meet keys and values once heads are split.

B batch, H heads, Q queries, K keys, E head width.
"""

from typing import Protocol

from torch import Tensor
from torch.nn import functional


class Kernel(Protocol):
    """What attention calls; chosen when the model is built."""

    def __call__(
        self, q_BHQE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask_B1QK: Tensor | None, dropout: float
    ) -> Tensor:
        """Return the attended values, BHQE."""
        ...


def full_attention(q_BHQE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask_B1QK: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention over every visible key (Vaswani et al. 2017), scaled by 1/√E."""
    return functional.scaled_dot_product_attention(q_BHQE, k_BHKE, v_BHKE, mask_B1QK, dropout)
