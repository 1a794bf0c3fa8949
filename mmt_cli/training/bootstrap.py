"""How far a figure of a data set may be off for want of images: the bootstrap (Efron 1979).

I images, X sums, R resamples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95  # share of resamples whose figures lie within the interval

_SEED = 0  # the same images are drawn each time
_DRAWS_AT_ONCE = 2**22  # 32 MiB


def resampled(rows_IX: Tensor, resamples: int = RESAMPLES) -> Tensor:
    """Return sums_RX (float64) over as many images as there are, drawn with replacement, many times.

    Args:
        rows_IX: float64, what each image adds to each sum.
        resamples: how many times.
    """
    images = len(rows_IX)
    generator = torch.Generator().manual_seed(_SEED)
    at_once = max(1, _DRAWS_AT_ONCE // images)
    parts = []
    for start in range(0, resamples, at_once):
        draws = min(at_once, resamples - start)
        drawn_RI = torch.randint(images, (draws, images), generator=generator)
        times_RI = torch.zeros(draws, images, dtype=torch.float64)
        times_RI.scatter_add_(1, drawn_RI, torch.ones_like(times_RI))
        parts.append(times_RI @ rows_IX)
    return torch.cat(parts)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the percentiles between which `LEVEL` of the values lie, as many below as above."""
    outside = (1 - LEVEL) / 2
    ends = torch.tensor([outside, 1 - outside], dtype=torch.float64)
    low, high = torch.tensor(values, dtype=torch.float64).quantile(ends).tolist()
    return low, high
