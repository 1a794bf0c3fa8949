"""How much memory the tensors of a run take up, operation by operation; the same on every device."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from mmt_cli.operations import is_opaque


class LiveMemory:
    """Keeps account of the storages that operations make and drop."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}  # of the storages that are alive, by their address
        self._live = 0
        self._highest: list[int] = []  # bytes after each operation

    def made(self, args: Iterable[Any], result: Any) -> None:
        """Account for one operation: what it made beside what it was given."""
        given = {_address(tensor) for tensor in _tensors(args)}
        for tensor in _tensors([result]):
            address = _address(tensor)
            if address in given or address in self._sizes:
                continue
            storage = tensor.untyped_storage()
            self._sizes[address] = storage.nbytes()
            self._live += storage.nbytes()
            weakref.finalize(storage, self._drop, address).atexit = False
        self._highest.append(self._live)

    def _drop(self, address: int) -> None:
        self._live -= self._sizes.pop(address)

    def mark(self) -> int:
        """Return how many operations there were."""
        return len(self._highest)

    def peak(self, start: int, end: int) -> int:
        """Return the most bytes after any operation between two marks; 0 where there was none."""
        return max(self._highest[start:end], default=0)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if not is_opaque(value):
                yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
