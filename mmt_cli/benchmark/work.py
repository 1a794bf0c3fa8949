"""Counting what layers do, operation by operation: floating-point operations, bytes read, memory taken."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmt_cli.benchmark.live import LiveMemory
from mmt_cli.operations import bytes_read, flops, is_opaque

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was done.

    Attributes:
        flops: floating-point operations; a multiplication with its addition is two.
        nbytes: bytes read of weights, and of keys and values in attention.
        peak: bytes that tensors made since counting began took up at most.
    """

    flops: int
    nbytes: int
    peak: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(flops=self.flops + other.flops, nbytes=self.nbytes + other.nbytes, peak=max(self.peak, other.peak))

    def __sub__(self, other: "Work") -> "Work":
        """Take a part off a whole, whose peak stays."""
        return Work(flops=self.flops - other.flops, nbytes=self.nbytes - other.nbytes, peak=self.peak)


NOTHING = Work(flops=0, nbytes=0)
Mark = tuple[Work, int]


class WorkCounter:
    """A meter of work; counts between `with` and its end."""

    def __init__(self, model: nn.Module) -> None:
        self._counting = _Counting(model)

    def __enter__(self) -> Self:
        self._counting.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *ending: Any) -> None:
        self._counting.__exit__(*ending)  # type: ignore[no-untyped-call]

    @property
    def work(self) -> Work:
        """All work since counting began."""
        return self._counting.work

    def mark(self) -> Mark:
        """Return the work done so far, and how many operations that were."""
        return self._counting.work, self._counting.memory.mark()

    def between(self, start: Mark, end: Mark) -> Work:
        """Return the work done from one mark to another."""
        done = end[0] - start[0]
        return Work(flops=done.flops, nbytes=done.nbytes, peak=self._counting.memory.peak(start[1], end[1]))

    def settle(self) -> None:
        """Do nothing: work is counted when it is given, not when it is done."""


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the work of every operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = NOTHING
        self.memory = LiveMemory()
        kept = itertools.chain(model.parameters(), model.buffers())  # the state would unpack what is packed
        own = (tensor for tensor in kept if isinstance(tensor, Tensor) and not is_opaque(tensor))
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in own}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler alone: by default a mode imports it, as FlopCounterMode does, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func.overloadpacket not in flop_registry and _is_composite(func.name()):
            # In inference mode operations made of others come whole, unknown to the formulas.
            with self:
                return func._op_dk(_COMPOSITE, *args, **given)
        result = func(*args, **given)
        read = bytes_read(func, args, result, self._weights_among(args))
        self.work += Work(flops=flops(func, args, given, result), nbytes=read)
        self.memory.made(args, result)
        return result

    def _weights_among(self, args: tuple[Any, ...]) -> list[Tensor]:
        # Optimizers take lists of weights.
        given = itertools.chain.from_iterable(arg if isinstance(arg, list) else [arg] for arg in args)
        return [arg for arg in given if isinstance(arg, Tensor) and self._is_weight(arg)]

    def _is_weight(self, tensor: Tensor) -> bool:
        """Say whether a tensor belongs to the model; only packed weights are opaque."""
        return is_opaque(tensor) or tensor.untyped_storage().data_ptr() in self._weights


@functools.cache
def _is_composite(name: str) -> bool:
    """Say whether an operation is made of others, by code of torch's own."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, _COMPOSITE)
