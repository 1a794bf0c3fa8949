"""Self- and cross-attention: projections and heads around a kernel.

B batch, L sequence, M memory (image) tokens, D width, H heads, G heads of keys and values, E head width, Q queries,
K keys.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.context import Context
from mmt_cli.model.kernels import MemoryAttention, build_kernel
from mmt_cli.model.layers import Linear, build_linear, build_norm
from mmt_cli.model.rotary import rotate


class Attention(nn.Module):
    """Heads and their norms; how queries, keys and values come about is the subclass's."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.dropout = config.dropout
        norms = [build_norm(config, config.head_width) if config.qk_norm else nn.Identity() for _ in range(2)]
        self.q_norm, self.k_norm = norms

    def split(self, x_BLD: Tensor) -> Tensor:
        """Return x_BHLE."""
        return torch.unflatten(x_BLD, -1, (-1, self.head_width)).transpose(1, 2)

    @property
    def dropout_now(self) -> float:
        """Dropout of attention weights: none outside training."""
        return self.dropout if self.training else 0.0


class SelfAttention(Attention):
    """The sequence attends to itself, and to the cached tokens before it."""

    def __init__(self, config: BlockConfig, num_tokens: int | None = None) -> None:
        super().__init__(config)
        heads_width, kv_width = config.num_heads * config.head_width, config.kv_heads * config.head_width
        self.widths = (heads_width, kv_width, kv_width)
        self.qkv = build_linear(config, config.width, sum(self.widths), bias=config.qkv_bias)
        self.out = build_linear(config, heads_width, config.width, bias=config.out_bias)
        self.kernel = build_kernel(config, num_tokens=num_tokens)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        q_BHLE, k_BGKE, v_BGKE = map(self.split, self.qkv(x_BLD, context).split(self.widths, dim=-1))
        q_BHLE, k_BGKE = self.q_norm(q_BHLE), self.k_norm(k_BGKE)
        if context.rotation is not None:
            q_BHLE, k_BGKE = rotate(q_BHLE, context.rotation), rotate(k_BGKE, context.rotation)
        if context.cache is not None:
            k_BGKE, v_BGKE = context.cache.write(k_BGKE, v_BGKE, context.visibility.start)
        attended_BHLE = self.kernel(q_BHLE, k_BGKE, v_BGKE, context.visibility, self.dropout_now, context.cache)
        return cast("Tensor", self.out(attended_BHLE.transpose(1, 2).flatten(2), context))


class CrossAttention(Attention):
    """The sequence attends to the memory, whose keys and values are computed once a cache."""

    def __init__(self, config: BlockConfig, memory_width: int) -> None:
        super().__init__(config)
        heads_width = config.num_heads * config.head_width
        self.q = Linear(config.width, heads_width, bias=config.qkv_bias)
        self.kv = Linear(memory_width, 2 * config.kv_heads * config.head_width, bias=config.qkv_bias)
        self.out = Linear(heads_width, config.width, bias=config.out_bias)
        self.kernel = MemoryAttention()

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        k_BGME, v_BGME = self._memory(context)
        q_BHLE = self.q_norm(self.split(self.q(x_BLD, context)))
        shared, length = len(q_BHLE) // max(len(k_BGME), 1), q_BHLE.shape[2]
        if shared > 1:  # rows that have one image are queries of one row of its memory, which is read once
            q_BHLE = q_BHLE.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
        attended_BHLE = self.kernel(q_BHLE, k_BGME, v_BGME, context.memory_mask_B11M, self.dropout_now)
        if shared > 1:
            attended_BHLE = attended_BHLE.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
        return cast("Tensor", self.out(attended_BHLE.transpose(1, 2).flatten(2), context))

    def _memory(self, context: Context) -> tuple[Tensor, Tensor]:
        if context.cache is not None and context.cache.memory is not None:
            return context.cache.read_memory()
        assert context.memory_BMD is not None, "cross-attention without a memory"
        k_BGME, v_BGME = map(self.split, self.kv(context.memory_BMD, context).chunk(2, dim=-1))
        k_BGME = self.k_norm(k_BGME)
        if context.cache is not None:
            context.cache.write_memory(k_BGME, v_BGME)
        return k_BGME, v_BGME
