"""Self- and cross-attention over one kernel.

B batch, L sequence, M memory (image) tokens, D width, H heads, E head width, Q queries, K keys.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.config import BlockConfig
from mmt_cli.model.kernels import Kernel, full_attention


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the sublayers of a block may look at besides the sequence itself."""

    mask_B1QK: Tensor | None = None
    memory_BMD: Tensor | None = None
    cache: LayerCache | None = None
    start: int = 0  # first free slot of the cache


class Attention(nn.Module):
    """Heads, kernel and output projection; how queries, keys and values come about is the subclass's."""

    def __init__(self, config: BlockConfig, kernel: Kernel = full_attention) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.kernel = kernel
        self.out = nn.Linear(config.width, config.width)

    def split(self, x_BLD: Tensor) -> Tensor:
        """Return x_BHLE."""
        batch, length, width = x_BLD.shape
        return x_BLD.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def attend(self, q_BHQE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, mask_B1QK: Tensor | None) -> Tensor:
        """Return the output projection of the attended values, BQD."""
        dropout = self.dropout if self.training else 0.0
        attended_BHQE = self.kernel(q_BHQE, k_BHKE, v_BHKE, mask_B1QK, dropout)
        output_BQD: Tensor = self.out(attended_BHQE.transpose(1, 2).flatten(2))
        return output_BQD


class SelfAttention(Attention):
    """The sequence attends to itself, and to the cached tokens before it."""

    def __init__(self, config: BlockConfig, kernel: Kernel = full_attention) -> None:
        super().__init__(config, kernel)
        self.qkv = nn.Linear(config.width, 3 * config.width)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        q_BHLE, k_BHKE, v_BHKE = map(self.split, self.qkv(x_BLD).chunk(3, dim=-1))
        if context.cache is not None:
            k_BHKE, v_BHKE = context.cache.write(k_BHKE, v_BHKE, context.start)
        return self.attend(q_BHLE, k_BHKE, v_BHKE, context.mask_B1QK)


class CrossAttention(Attention):
    """The sequence attends to the memory, whose keys and values are computed once a cache."""

    def __init__(self, config: BlockConfig, memory_width: int, kernel: Kernel = full_attention) -> None:
        super().__init__(config, kernel)
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(memory_width, 2 * config.width)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        k_BHME, v_BHME = self._memory(context)
        return self.attend(self.split(self.q(x_BLD)), k_BHME, v_BHME, None)

    def _memory(self, context: Context) -> tuple[Tensor, Tensor]:
        if context.cache is not None and context.cache.memory_kv is not None:
            return context.cache.memory_kv
        assert context.memory_BMD is not None, "cross-attention without a memory"
        k_BMD, v_BMD = self.kv(context.memory_BMD).chunk(2, dim=-1)
        memory_kv = self.split(k_BMD), self.split(v_BMD)
        if context.cache is not None:
            context.cache.memory_kv = memory_kv
        return memory_kv
