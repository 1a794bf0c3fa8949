"""The books of a dry run, in which everything has a shape and nothing is computed: work and memory.

Dry are torch's fake tensors, which take the ways through torch that a CPU's do.

B batch, L sequence.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmt_cli.operations import bytes_read, flops

_ATEN = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a part of a run took.

    Attributes:
        flops: floating-point operations.
        nbytes: bytes read of weights, and of keys and values in attention.
        peak: bytes that tensors made since the books were opened took at most meanwhile.
    """

    flops: int
    nbytes: int
    peak: int


@dataclass(kw_only=True)
class Books:
    """Running totals.

    Attributes:
        flops: so far.
        nbytes: so far.
        live: bytes of tensors made since the books were opened that are still there.
        peak: the most that this was since the last entry.
    """

    flops: int = 0
    nbytes: int = 0
    live: int = 0
    peak: int = 0
    storages: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def close_entry(self) -> Entry:
        """Return what was written since the last entry, and begin the next."""
        entry = Entry(flops=self.flops, nbytes=self.nbytes, peak=self.peak)
        self.flops = self.nbytes = 0
        self.peak = self.live
        return entry

    def made(self, tensor: Tensor) -> None:
        """Count a tensor's memory, if it is new, until it is let go."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages or not size:
            return

        def gone(_: object) -> None:
            del self.storages[key]
            self.live -= size

        self.storages[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def passing(self, size: int) -> None:
        """Count memory that an operation takes for itself and gives back."""
        self.peak = max(self.peak, self.live + size)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operation on fake tensors into the books, between `with` and its end.

    To be entered behind the FakeTensorMode that makes them. Questions that code asks of data (are all placeholders
    there?) are answered as sound data would answer them. A mask that picks tokens picks as many as `image_tokens` says,
    one turned over all others; for that is what masks are for that models pick by.

    Attributes:
        books: what was written so far.
        image_tokens: of each row.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.books = Books()
        self.image_tokens = 0
        self._kept = [tensor.untyped_storage() for tensor in weights]
        self._weights = {storage._cdata for storage in self._kept}
        self._asked_all = False
        self._turned: set[int] = set()  # storages of masks

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler alone: by default a mode imports it, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is _ATEN._local_scalar_dense.default:
            return self._asked_all
        if func is _ATEN.equal.default:
            return True  # rows keep their images
        if func in (_ATEN.all.default, _ATEN.any.default):
            self._asked_all = func is _ATEN.all.default
        picked = self._picked(func, args)
        result = func(*args, **given) if picked is None else picked
        self.books.flops += flops(func, args, given, result)
        if func.namespace != "prim":  # which asks for a tensor's device
            read = [arg for arg in _tensors(args) if arg.untyped_storage()._cdata in self._weights]
            self.books.nbytes += bytes_read(func, args, result, read)
        for leaf in _tensors(result):
            key = leaf.untyped_storage()._cdata
            (self._turned.add if func is _ATEN.bitwise_not.default else self._turned.discard)(key)
            if key not in self._weights:
                self.books.made(leaf)
        if func is _ATEN.convolution.default:
            self.books.passing(args[0].nbytes)  # oneDNN lays out its input anew
        return result

    def _picked(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """Return what comes of picking tokens by a mask, or of putting them back; None for all else."""
        if func not in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default):
            return None
        mask_BL = args[1][0]
        if mask_BL is None or mask_BL.dtype != torch.bool:
            return None
        if func is not _ATEN.index.Tensor:
            whole: Tensor = args[0]
            return whole
        rows, length = mask_BL.shape
        each = self.image_tokens if mask_BL.untyped_storage()._cdata not in self._turned else length - self.image_tokens
        picked: Tensor = args[0].new_empty(rows * each, *args[0].shape[2:])
        return picked


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
