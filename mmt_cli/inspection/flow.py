"""Attention of many layers and heads made one: a mean, or what flows through all of them (rollout).

H heads, Q queries, K keys, M memory tokens, R rows that are asked for, T tiles, N image tokens of a tile.
"""

from typing import Protocol

import torch
from torch import Tensor


class Gathering(Protocol):
    """What takes a stack's weights, layer by layer as the stack reads, and says where its rows looked."""

    def take(self, name: str, weights_1HQK: Tensor) -> None:
        """Take the weights of one attention.

        Args:
            name: `3.attention…` or `3.cross_attention…`, as its place in the stack is named.
            weights_1HQK: of its heads.
        """

    def own(self) -> Tensor:
        """Return how much each position looked at each position of its own sequence, QQ."""

    def memory(self) -> Tensor:
        """Return how much each position looked at each token of the memory, QM."""


class Mean:
    """The mean over layers and heads, or what one of either did."""

    def __init__(self, layer: int | None, head: int | None) -> None:
        self.layer, self.head = layer, head
        # Sums and numbers, of cross-attention and not: the weights of all layers of a large model take gigabytes.
        self._sums: dict[bool, tuple[Tensor, int]] = {}

    def take(self, name: str, weights_1HQK: Tensor) -> None:
        """Take the weights of one attention."""
        if self.layer in (None, _layer(name)):
            weights_QK, crosses = _picked(weights_1HQK, self.head), _crosses(name)
            total_QK, count = self._sums.get(crosses, (torch.zeros_like(weights_QK), 0))
            self._sums[crosses] = total_QK + weights_QK, count + 1

    def own(self) -> Tensor:
        """Return the mean of self-attention."""
        return self._mean(crosses=False)

    def memory(self) -> Tensor:
        """Return the mean of cross-attention."""
        return self._mean(crosses=True)

    def _mean(self, *, crosses: bool) -> Tensor:
        total_QK, count = self._sums[crosses]
        return total_QK / count


class Rollout:
    """What comes of what was read first, if each layer passes on half of each token and half of what it attended to.

    Abnar & Zuidema 2020, with cross-attention as a third source: the shares of a position's own sequence and of the
    memory add up to 1.
    """

    def __init__(self, head: int | None) -> None:
        self.head = head
        self._own_QQ: Tensor | None = None
        self._memory_QM: Tensor | None = None

    def take(self, name: str, weights_1HQK: Tensor) -> None:
        """Take the weights of one attention."""
        weights_QK = _picked(weights_1HQK, self.head)
        own_QQ = torch.eye(len(weights_QK), device=weights_QK.device) if self._own_QQ is None else self._own_QQ
        if not _crosses(name):
            self._own_QQ = (own_QQ + weights_QK @ own_QQ) / 2
            if self._memory_QM is not None:
                self._memory_QM = (self._memory_QM + weights_QK @ self._memory_QM) / 2
        else:
            self._own_QQ = own_QQ / 2
            before = torch.zeros_like(weights_QK) if self._memory_QM is None else self._memory_QM
            self._memory_QM = (before + weights_QK) / 2

    def own(self) -> Tensor:
        """Return what of its own sequence is in each position."""
        assert self._own_QQ is not None, "no layer has read"
        return self._own_QQ

    def memory(self) -> Tensor:
        """Return what of the memory is in each position."""
        assert self._memory_QM is not None, "no layer looked at a memory"
        return self._memory_QM


class TileRollout:
    """The same over image blocks, those among them whose tokens are the ones that the text sees."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._layers: dict[str, list[Tensor]] = {}

    def take(self, name: str, weights_THNN: Tensor) -> None:
        """Take the weights of one attention, for all tiles or, of a picture in many, for some."""
        if weights_THNN.shape[-1] == self.tokens:
            self._layers.setdefault(name, []).append(weights_THNN.mean(dim=1))

    def through(self, weights_RTN: Tensor) -> Tensor:
        """Return where weights of the image's last tokens come from among its first ones, RTN."""
        for parts in reversed(self._layers.values()):
            layer_TNN = torch.cat(parts)
            weights_RTN = (weights_RTN + torch.einsum("rtn,tnm->rtm", weights_RTN, layer_TNN)) / 2
        return weights_RTN


def _layer(name: str) -> int:
    return int(name.partition(".")[0])


def _crosses(name: str) -> bool:
    return "cross_attention" in name


def _picked(weights_1HQK: Tensor, head: int | None) -> Tensor:
    weights_HQK = weights_1HQK[0]
    return weights_HQK.mean(dim=0) if head is None else weights_HQK[head]
