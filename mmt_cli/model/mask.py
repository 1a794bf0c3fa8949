"""Masks are data: each token carries a step, and sees the tokens whose step is not later than its own.

B batch, Q queries, K keys.
"""

from torch import Tensor


def visibility_mask(step_BQ: Tensor, step_BK: Tensor, valid_BK: Tensor | None) -> Tensor | None:
    """Return which keys each query sees.

    Args:
        step_BQ: integer steps of the queries (B may be 1).
        step_BK: integer steps of the keys (B may be 1).
        valid_BK: False at padding keys; None when there is no padding. Only keys are masked, for a query row that
            sees nothing would be NaN.

    Returns:
        mask_B1QK, bool, True where a query sees a key; None when nothing is hidden, which keeps the fast kernels.
    """
    mask_BQK = step_BK[:, None, :] <= step_BQ[:, :, None]
    if valid_BK is not None:
        mask_BQK = mask_BQK & valid_BK[:, None, :]
    return None if bool(mask_BQK.all()) else mask_BQK[:, None]
