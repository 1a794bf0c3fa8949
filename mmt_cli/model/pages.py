"""Pages of memory that stand for a file's: the system can read them again, so a process need not hold them."""

import ctypes
import sys
from bisect import bisect_right
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")
_PAGE = 4096
_DONT_NEED = 4  # MADV_DONTNEED of mman.h


class FilePages:
    """Which addresses of this process are a file's, as they were when this was built; none where that is unknown."""

    def __init__(self) -> None:
        found = []
        if sys.platform.startswith("linux") and _MAPS.exists():
            for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
                span, *_, path = line.split(maxsplit=5)
                if path.startswith("/"):
                    first, _, end = span.partition("-")
                    found.append((int(first, 16), int(end, 16)))
        self._spans = sorted(found)

    def hold(self, tensor: Tensor) -> bool:
        """Say whether a tensor's memory lies in a file's pages."""
        place = bisect_right(self._spans, (tensor.data_ptr(), sys.maxsize)) - 1
        return place >= 0 and tensor.data_ptr() + tensor.nbytes <= self._spans[place][1]

    def forget(self, tensor: Tensor) -> None:
        """Give the pages of a tensor back to the system where they are a file's; else do nothing."""
        if self.hold(tensor):
            forget(tensor)


def forget(tensor: Tensor) -> None:
    """Give a mapped file's pages back to the system, which can read them again; does nothing where it cannot.

    Of memory that is no file's the contents would be lost.
    """
    if not sys.platform.startswith("linux"):
        return
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONT_NEED)
