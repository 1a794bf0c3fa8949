"""What every attention kernel offers, and the one that sees everything.

B batch, H heads, G heads of keys and values, R = H/G queries' heads that share one, Q queries, K keys, E head width.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.mask import Visibility
from mmt_cli.model.processor import has_small_products, is_counted

_FEW_QUERIES = 16
_FEW_NUMBERS = 2**18  # of all keys
_MOST_SCORES = 2**26  # of one row of the batch, 128 MiB
_SCORES_AT_ONCE = 2**20  # that stay in the processor's caches between the two products and the softmax
_HIDDEN = torch.finfo(torch.bfloat16).min  # and not infinity, of which a query that sees nothing would make NaN


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

    def __init__(self, *, large_scores: bool = False) -> None:
        """Say whether scores may grow so large, before the softmax, that bfloat16 holds them too coarsely."""
        super().__init__()
        self.large_scores = large_scores

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
        return full_attention(q_BHQE, k_BGKE, v_BGKE, visibility.mask(), dropout, large_scores=self.large_scores)


class MemoryAttention(nn.Module):
    """Softmax attention of the sequence to a memory beside it: no order, padding of the memory alone is hidden."""

    def forward(
        self, q_BHQE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask_B11M: Tensor | None, dropout: float
    ) -> Tensor:
        """Return the attended values, BHQE; the arguments are those of `full_attention`."""
        return full_attention(q_BHQE, k_BGME, v_BGME, mask_B11M, dropout)


def full_attention(
    q_BHQE: Tensor,
    k_BGKE: Tensor,
    v_BGKE: Tensor,
    mask_B1QK: Tensor | None,
    dropout: float,
    *,
    large_scores: bool = False,
) -> Tensor:
    """Softmax attention under a mask: bool, True where a query sees a key, or float, to be added to the scores."""
    heads, shared = q_BHQE.shape[1], k_BGKE.shape[1]
    if shared < heads and q_BHQE.shape[2] == 1:
        # The heads that share keys become queries of one head: the keys are read once, on every device.
        q_BGRE = q_BHQE.reshape(len(q_BHQE), shared, heads // shared, -1)
        return full_attention(q_BGRE, k_BGKE, v_BGKE, mask_B1QK, dropout, large_scores=large_scores).reshape(
            q_BHQE.shape
        )
    if not dropout and _fused_is_slow(q_BHQE):
        if q_BHQE.shape[2] < _FEW_QUERIES and k_BGKE.numel() <= _FEW_NUMBERS:
            return _in_float32(q_BHQE, k_BGKE, v_BGKE, mask_B1QK)
        if shared == heads and not large_scores and heads * q_BHQE.shape[2] * k_BGKE.shape[2] <= _MOST_SCORES:
            return _products(q_BHQE, k_BGKE, v_BGKE, mask_B1QK)
    return functional.scaled_dot_product_attention(
        q_BHQE, k_BGKE, v_BGKE, mask_B1QK, dropout, enable_gqa=shared < heads
    )


def _fused_is_slow(q_BHQE: Tensor) -> bool:
    """Say whether torch's fused kernel is slow here, and nobody wants gradients or looks at each operation."""
    plain = q_BHQE.device.type == "cpu" and torch.is_inference_mode_enabled()
    return plain and not has_small_products(q_BHQE.dtype) and not is_counted()


def _in_float32(q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1QK: Tensor | None) -> Tensor:
    """Attend in float32, whose fused kernel is fast: for few keys turning them costs less than products in bfloat16.

    One query and two hundred keys of twelve heads take two thirds of the time of `_products` on an EPYC.
    """
    if mask_B1QK is not None and mask_B1QK.is_floating_point():
        mask_B1QK = mask_B1QK.float()
    q_BHQE, k_BGKE, v_BGKE, dtype = q_BHQE.float(), k_BGKE.float(), v_BGKE.float(), q_BHQE.dtype
    attended_BHQE = functional.scaled_dot_product_attention(
        q_BHQE, k_BGKE, v_BGKE, mask_B1QK, enable_gqa=k_BGKE.shape[1] < q_BHQE.shape[1]
    )
    return attended_BHQE.to(dtype)


def _products(q_BHQE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask_B1QK: Tensor | None) -> Tensor:
    """Attend by whole products with the scores between them, of as many heads as stay in the caches.

    For hundreds of queries that takes half to two thirds of the fused kernel's time on an EPYC, for one query two
    fifths; rounding scores as all else is rounded was seen to change a model's output no more than that kernel does.
    """
    scaled_BHQE = q_BHQE * q_BHQE.shape[-1] ** -0.5
    batch, heads, queries, width = q_BHQE.shape
    if queries < _FEW_QUERIES:
        scores_BHQK = torch.matmul(k_BHKE, scaled_BHQE.mT).mT  # many rows times few columns: twice as fast
        return torch.matmul(_weights(scores_BHQK, mask_B1QK), v_BHKE)
    attended_BHQE = q_BHQE.new_empty(batch, queries, heads, width).transpose(1, 2)  # as it is read next
    group = max(1, _SCORES_AT_ONCE // (queries * k_BHKE.shape[2]))
    mask_B1QK = None if mask_B1QK is None else mask_B1QK.expand(batch, -1, -1, -1)
    for row, first in itertools.product(range(batch), range(0, heads, group)):
        part = slice(row, row + 1), slice(first, first + group)
        mask_11QK = None if mask_B1QK is None else mask_B1QK[part[0]]
        weights_1HQK = _weights(torch.matmul(scaled_BHQE[part], k_BHKE[part].mT), mask_11QK)
        attended_BHQE[part] = torch.matmul(weights_1HQK, v_BHKE[part])
    return attended_BHQE


def _weights(scores_BHQK: Tensor, mask_B1QK: Tensor | None) -> Tensor:
    if mask_B1QK is not None and mask_B1QK.dtype is torch.bool:
        scores_BHQK.masked_fill_(~mask_B1QK, _HIDDEN)
    elif mask_B1QK is not None:
        scores_BHQK.add_(mask_B1QK.clamp_min(_HIDDEN))
    return scores_BHQK.softmax(dim=-1)
