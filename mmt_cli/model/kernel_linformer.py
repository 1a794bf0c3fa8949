"""Attention over learned mixtures of the keys: cheap, for one length alone.

B batch, H heads, G heads of keys and values, Q queries, K keys, R mixtures, E head width.
"""

import torch
from torch import Tensor, nn

from mmt_cli.model.cache import LayerCache
from mmt_cli.model.kernel_full import Kernel, full_attention
from mmt_cli.model.mask import Visibility


class Linformer(Kernel):
    """Softmax attention over R learned mixtures of the K keys and values (Wang et al. 2020).

    One pair of projections serves all heads. Time grows with Q·R. Supports `num_tokens` keys, neither more nor fewer,
    and no mask: a mixture holds a little of every key, so none can be hidden. Hence neither causal reading nor a cache.
    """

    def __init__(self, *, rank: int, num_tokens: int) -> None:
        super().__init__()
        self.keys = _mixtures(rank, num_tokens)
        self.values = _mixtures(rank, num_tokens)

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
        found, wanted = k_BGKE.shape[2], self.keys.shape[1]
        assert found == wanted, f"linformer mixes {wanted} tokens, found {found}"
        assert visibility.mask() is None, "linformer cannot hide a key"
        return full_attention(q_BHQE, self.keys @ k_BGKE, self.values @ v_BGKE, None, dropout)


def _mixtures(rank: int, num_tokens: int) -> nn.Parameter:
    """Return weights_RK, drawn so that a mixture of independent tokens is as large as one token."""
    weights_RK = nn.Parameter(torch.empty(rank, num_tokens))
    if not weights_RK.is_meta:  # drawing there imports torch's compiler: seconds
        nn.init.normal_(weights_RK, std=num_tokens**-0.5)
    return weights_RK
