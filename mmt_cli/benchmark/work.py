"""Counting what layers do, operation by operation: floating-point operations, and bytes of weights read."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations (a multiplication with its addition is two), and bytes read from the weights."""

    flops: int
    nbytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(flops=self.flops + other.flops, nbytes=self.nbytes + other.nbytes)

    def __sub__(self, other: "Work") -> "Work":
        return Work(flops=self.flops - other.flops, nbytes=self.nbytes - other.nbytes)


NOTHING = Work(flops=0, nbytes=0)


class WorkCounter:
    """A meter of work; counts between `with` and its end.

    Attention is computed there by plain matrix products, since torch's counter knows no CPU attention kernel. The
    FLOPs are the same, only the products of matrices and convolutions count (norms and activations do not).
    """

    def __init__(self, model: nn.Module) -> None:
        self._flops = FlopCounterMode(display=False)
        self._reads = _WeightReads(model)
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._modes.enter_context(self._flops)
        # The last one entered sees the operations first, as the model calls them.
        self._modes.enter_context(self._reads)
        return self

    def __exit__(self, *_: object) -> None:
        self._modes.close()

    def mark(self) -> Work:
        """Return the work done so far."""
        return Work(flops=self._flops.get_total_flops(), nbytes=self._reads.nbytes)

    def between(self, start: Work, end: Work) -> Work:
        """Return the work done from one mark to another."""
        return end - start

    def settle(self) -> None:
        """Do nothing: work is counted when it is given, not when it is done."""


class _WeightReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the weights that operations take; of a table that is looked up, the rows taken out."""

    _LOOKUPS = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [arg for arg in args if isinstance(arg, Tensor) and self._is_weight(arg)]
        if func in self._LOOKUPS:
            self.nbytes += result.nbytes if read else 0
        elif not func.is_view:
            self.nbytes += sum(tensor.nbytes for tensor in read)
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._weights
