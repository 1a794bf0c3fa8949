"""What every attention kernel offers, and the one that sees everything.

B batch, H heads, G heads of keys and values, R = H/G queries' heads that share one, Q queries, K keys, E head width.
"""

from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.mask import Visibility


class Kernel(nn.Module):
    """How queries meet keys and values once heads are split; chosen when the model is built."""

    def forward(
        self,
        q_BHQE: Tensor,
        k_BGKE: Tensor,
        v_BGKE: Tensor,
        visibility: Visibility,
        dropout: float,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values, BHQE.

        Args:
            q_BHQE: of the new tokens.
            k_BGKE: of all tokens up to and with them; query head h reads key head h // (H/G), where G divides H.
            v_BGKE: the same tokens' values.
            visibility: who sees whom.
            dropout: share of the attention weights to drop.
            cache: where the layer keeps what it need not compute again.
        """
        raise NotImplementedError


class FullAttention(Kernel):
    """Softmax attention over everything visible (Vaswani et al. 2017), scaled by 1/√E.

    Supports any mask, causal reading and caches, all exactly. Time grows with Q·K.
    """

    def forward(
        self,
        q_BHQE: Tensor,
        k_BGKE: Tensor,
        v_BGKE: Tensor,
        visibility: Visibility,
        dropout: float,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values, BHQE."""
        return full_attention(q_BHQE, k_BGKE, v_BGKE, visibility.mask(), dropout)


class MemoryAttention(nn.Module):
    """Softmax attention of the sequence to a memory beside it: no order, padding of the memory alone is hidden."""

    def forward(
        self, q_BHQE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask_B11M: Tensor | None, dropout: float
    ) -> Tensor:
        """Return the attended values, BHQE; the arguments are those of `full_attention`."""
        return full_attention(q_BHQE, k_BGME, v_BGME, mask_B11M, dropout)


def full_attention(q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1QK: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention under a mask: bool, True where a query sees a key, or float, to be added to the scores."""
    heads, shared = q_BHQE.shape[1], k_BGKE.shape[1]
    if shared < heads and q_BHQE.shape[2] == 1:
        # The heads that share keys become queries of one head: the keys are read once, on every device.
        q_BGRE = q_BHQE.reshape(len(q_BHQE), shared, heads // shared, -1)
        return functional.scaled_dot_product_attention(q_BGRE, k_BGKE, v_BGKE, mask_B1QK, dropout).reshape(q_BHQE.shape)
    return functional.scaled_dot_product_attention(
        q_BHQE, k_BGKE, v_BGKE, mask_B1QK, dropout, enable_gqa=shared < heads
    )
