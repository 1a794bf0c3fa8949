"""Cross-entropy over the vocabulary, with the logits of a few positions in memory at a time.

P positions (tokens of all rows), C positions of one chunk, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**25  # elements: 128 MiB in float32; the backward pass holds about four tensors of this size


def vocabulary_loss(
    head: Callable[[Tensor], Tensor],
    x_PD: Tensor,
    target_P: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    weight_P: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the mean cross-entropy in nats over the positions that have a target, float32, a scalar.

    Value and gradients are those of `cross_entropy(head(x_PD), target_P)` but for rounding; under autocast a head's
    gradient is added up over the chunks in the lower precision. More than one chunk costs the head a second forward
    pass, since logits are computed again in the backward pass.

    Args:
        head: x_CD → logits_CV, each position by itself.
        x_PD: what the head reads.
        target_P: token ids, `ignore_index` where there is nothing to learn; the loss is 0 where that is everywhere.
        label_smoothing: share of probability spread over the whole vocabulary.
        ignore_index: the mark of positions without a target.
        weight_P: what each position's cross-entropy is multiplied by; None: 1. The mean is over their number anyway.
        chunk: positions whose logits exist at a time; None: as many as give `LOGITS_AT_ONCE` of them.
    """
    if chunk is None:
        with torch.no_grad():
            vocabulary = head(x_PD[:0]).shape[-1]
        chunk = max(1, LOGITS_AT_ONCE // vocabulary)
    summed = partial(_summed, head, label_smoothing=label_smoothing, ignore_index=ignore_index)
    given = (x_PD, target_P) if weight_P is None else (x_PD, target_P, weight_P)
    if len(target_P) <= chunk:
        total = summed(*given)
    else:
        chunks = zip(*(torch.split(tensor, chunk) for tensor in given), strict=True)
        total = torch.stack([checkpoint(summed, *parts, use_reentrant=False) for parts in chunks]).sum()
    return total / (target_P != ignore_index).sum().clamp(min=1)


def _summed(
    head: Callable[[Tensor], Tensor],
    x_CD: Tensor,
    target_C: Tensor,
    weight_C: Tensor | None = None,
    *,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """Return the sum of the cross-entropy over the positions of one chunk."""
    loss = functional.cross_entropy(
        head(x_CD).float(),
        target_C,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum" if weight_C is None else "none",
    )
    return loss if weight_C is None else (weight_C * loss).sum()
