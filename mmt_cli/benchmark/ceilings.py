"""What the machine can do at most: how fast it multiplies matrices and reads memory, measured."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.benchmark.layers import MILLISECONDS, clock_for
from mmt_cli.model.int8 import OneDnnProduct, PlainProduct, can_multiply, quantised

_SIDE = {"cpu": 2048}  # of the matrices
_GPU_SIDE = 8192
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 << 20  # larger than that of most processors
_TIMES_CACHE = 2
_SMALLEST_BUFFER, _LARGEST_BUFFER = 256 << 20, 2 << 30
_ROW = 4096  # numbers
_FEWEST_RUNS, _SECONDS = 3, 0.5


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Limits that figures are held against; the best of several runs.

    Attributes:
        flops_per_s: of a product of large square matrices in the dtype of the model, by the fastest kernel at hand.
        matrix_side: of these.
        bytes_per_s: of reading a buffer that no cache holds.
        buffer_bytes: its size.
    """

    flops_per_s: float
    matrix_side: int
    bytes_per_s: float
    buffer_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the part of a report's `machine`."""
        return {
            "matrix_flops_per_s": self.flops_per_s,
            "matrix_side": self.matrix_side,
            "read_bytes_per_s": self.bytes_per_s,
            "read_buffer_bytes": self.buffer_bytes,
        }


def measure_ceilings(
    device: torch.device,
    dtype: torch.dtype,
    *,
    int8: bool = False,
    side: int | None = None,
    buffer_bytes: int | None = None,
) -> Ceilings:
    """Measure both; takes about two seconds.

    Args:
        device: what is measured.
        dtype: of the matrices.
        int8: whether they are of integers in 8 bits instead.
        side: of the matrices; large enough for the device if None.
        buffer_bytes: to be read; twice the largest cache if None, at least 256 MiB and at most 2 GiB.
    """
    side = side or _SIDE.get(device.type, _GPU_SIDE)
    size = buffer_bytes or min(max(_TIMES_CACHE * _cache_bytes(device), _SMALLEST_BUFFER), _LARGEST_BUFFER)
    with torch.inference_mode():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")
        products = _int8_products(a, b) if int8 else _products(a, b)
        fastest = min(_best_s(product, device) for product in products)
        buffer = torch.ones(size // 4 // _ROW, _ROW, device=device)
        one = torch.ones(1, _ROW, device=device)
        # Which of the two reads faster depends on the processor.
        reads: tuple[Callable[[], Tensor], ...] = (buffer.sum, lambda: functional.linear(one, buffer))
        read = min(_best_s(way, device) for way in reads)
    return Ceilings(
        flops_per_s=2 * side**3 / fastest,
        matrix_side=side,
        bytes_per_s=buffer.nbytes / read,
        buffer_bytes=buffer.nbytes,
    )


def _products(a: Tensor, b: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Yield ways to multiply two matrices; on a CPU weights packed for oneDNN may go twice as fast."""
    yield lambda: a @ b
    packs = torch._C._has_mkldnn and a.dtype in (torch.float32, torch.bfloat16)
    if a.device.type == "cpu" and packs:
        packed = torch.ops.mkldnn._reorder_linear_weight(b, a.shape[0])
        yield lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def _int8_products(a: Tensor, b: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Yield ways to multiply two matrices once they have been turned into integers."""
    rows, (columns, scale) = quantised(a)[0], quantised(b)
    for kind in (PlainProduct, OneDnnProduct) if can_multiply() else (PlainProduct,):
        yield partial(kind(columns, scale[:, 0]), rows)


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of several runs after the first."""
    clock: Any = clock_for(device)
    work()
    clock.settle()
    best, runs, until = math.inf, 0, time.perf_counter() + _SECONDS
    while runs < _FEWEST_RUNS or time.perf_counter() < until:
        start = clock.mark()
        work()
        end = clock.mark()
        clock.settle()
        best, runs = min(best, clock.between(start, end)), runs + 1
    return best / MILLISECONDS


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [read_size(path) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=_UNKNOWN_CACHE)


def read_size(path: Path) -> int:
    """Return the bytes that a file of the kernel's tells of a cache, such as `32768K`; 0 where it tells none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * factor if digits.isdecimal() else 0
