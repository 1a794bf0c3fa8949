"""Attention weights, which the fast kernels never make, recorded while a model reads.

Every kernel is a module that was chosen when its layer was built; for the time of a reading each gives way to one that
computes the weights, hands them out, and goes on as the kernel would have.

B batch, H heads, G heads of keys and values, Q queries, K keys, M memory tokens, E head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mmt_cli.model.attention import CrossAttention, SelfAttention
from mmt_cli.model.cache import LayerCache
from mmt_cli.model.kernels import FullAttention, Kernel, SlidingWindow
from mmt_cli.model.mask import Visibility

Keep = Callable[[Tensor], None]
"""Takes weights_BHQK, float32."""


class RecordingKernel(Kernel):
    """Attends as the kernel in whose place it stands, and hands out the weights."""

    def __init__(self, kernel: Kernel, keep: Keep) -> None:
        super().__init__()
        self.kernel = kernel
        self.keep = keep

    def forward(
        self,
        q_BHQE: Tensor,
        k_BGKE: Tensor,
        v_BGKE: Tensor,
        visibility: Visibility,
        dropout: float,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values, BHQE, without dropout."""
        weights_BHQK = kernel_weights(self.kernel, q_BHQE, k_BGKE, visibility)
        self.keep(weights_BHQK)
        return _weighed(weights_BHQK, v_BGKE)


class RecordingMemory(nn.Module):
    """The same for attention to a memory."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

    def forward(
        self, q_BHQE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask_B11M: Tensor | None, dropout: float
    ) -> Tensor:
        """Return the attended values, BHQE, without dropout."""
        weights_BHQM = softmax_weights(q_BHQE, k_BGME, mask_B11M)
        self.keep(weights_BHQM)
        return _weighed(weights_BHQM, v_BGME)


@contextmanager
def recorded(root: nn.Module, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand out the weights of every self- and cross-attention below `root`, in the order in which they are computed.

    Args:
        root: a model, or a part of one.
        keep: takes the attention's name below `root`, and weights_BHQK.
    """
    kinds = (SelfAttention, CrossAttention)
    kernels = [(name, part, part.kernel) for name, part in root.named_modules() if isinstance(part, kinds)]
    try:
        for name, part, kernel in kernels:
            own = partial(keep, name)
            recording = RecordingKernel(kernel, own) if isinstance(kernel, Kernel) else RecordingMemory(own)
            setattr(part, "kernel", recording)  # noqa: B010 — its declared type is the kernel's own
        yield
    finally:
        for _, part, kernel in kernels:
            setattr(part, "kernel", kernel)  # noqa: B010


def kernel_weights(kernel: Kernel, q_BHQE: Tensor, k_BGKE: Tensor, visibility: Visibility) -> Tensor:
    """Return weights_BHQK: how much of each key's value the kernel gives each query, float32.

    Those of a softmax are computed as it is defined. Of the kernels that never have any (Performer's estimate,
    Linformer's mixtures) they are what comes out for values of one at one key and zero at all others; for whatever a
    kernel does, it does to sums of values.
    """
    if isinstance(kernel, FullAttention | SlidingWindow):
        window = kernel.window if isinstance(kernel, SlidingWindow) else None
        return softmax_weights(q_BHQE, k_BGKE, visibility.mask(window))
    batch, shared, keys, width = k_BGKE.shape
    ones_KK = torch.eye(keys, dtype=k_BGKE.dtype, device=k_BGKE.device)
    # As wide as real values, for which a kernel has room.
    found = []
    for some_KE in torch.split(ones_KK, width, dim=1):
        filled_KE = nn.functional.pad(some_KE, (0, width - some_KE.shape[1]))
        values_BGKE = filled_KE.expand(batch, shared, -1, -1)
        attended_BHQE = kernel(q_BHQE, k_BGKE, values_BGKE, visibility, 0.0, None)
        found.append(attended_BHQE[..., : some_KE.shape[1]].float())
    return torch.cat(found, dim=-1)


def softmax_weights(q_BHQE: Tensor, k_BGKE: Tensor, mask_B1QK: Tensor | None) -> Tensor:
    """Return the weights_BHQK of `full_attention`, float32."""
    k_BHKE = _for_each_head(k_BGKE, q_BHQE.shape[1]).float()
    scores_BHQK = (q_BHQE.float() * q_BHQE.shape[-1] ** -0.5) @ k_BHKE.transpose(-2, -1)
    if mask_B1QK is not None and mask_B1QK.dtype == torch.bool:
        scores_BHQK = scores_BHQK.masked_fill(~mask_B1QK, -torch.inf)
    elif mask_B1QK is not None:
        scores_BHQK = scores_BHQK + mask_B1QK.float()
    return torch.softmax(scores_BHQK, dim=-1)


def _weighed(weights_BHQK: Tensor, v_BGKE: Tensor) -> Tensor:
    v_BHKE = _for_each_head(v_BGKE, weights_BHQK.shape[1])
    return (weights_BHQK @ v_BHKE.float()).to(v_BGKE.dtype)


def _for_each_head(x_BGKE: Tensor, heads: int) -> Tensor:
    return x_BGKE.repeat_interleave(heads // x_BGKE.shape[1], dim=1)
