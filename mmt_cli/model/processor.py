"""What this machine's processor, and the libraries that torch brings along for it, multiply fast."""

import functools
import itertools
import platform
from pathlib import Path

import torch


def has_onednn() -> bool:
    """Say whether torch brings oneDNN along, on the processors that the rules here were measured on."""
    return platform.machine() in ("x86_64", "AMD64") and torch._C._has_mkldnn


def can_pack(dtype: torch.dtype) -> bool:
    """Say whether this machine has the kernels for a dtype."""
    if not has_onednn() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_counted() -> bool:
    """Say whether somebody looks at each operation: then they shall be those of the model, without what only speeds up.

    Rows that keep others company are no work that was asked for.
    """
    return bool(torch._C._len_torch_dispatch_stack())


@functools.cache
def has_tiles() -> bool:
    """Say whether the processor multiplies tiles (AMX)."""
    found: bool = torch.cpu._is_amx_tile_supported()
    return found


@functools.cache
def has_small_products(dtype: torch.dtype) -> bool:
    """Say whether products of small matrices, as torch's fused attention makes them, are fast in a dtype.

    In bfloat16 each is a call of oneDNN, which takes longer to set up than to do, but with AMX torch has its own.
    """
    return dtype is not torch.bfloat16 or not can_pack(dtype) or has_tiles()


@functools.cache
def mkl_is_at_home() -> bool:
    """Say whether torch multiplies with MKL on a processor of MKL's maker; elsewhere MKL takes slower kernels."""
    about = Path("/proc/cpuinfo")
    if not torch._C.has_mkl or not about.exists():
        return False
    with about.open(encoding="utf-8", errors="replace") as lines:
        return any("GenuineIntel" in line for line in itertools.islice(lines, 8))
