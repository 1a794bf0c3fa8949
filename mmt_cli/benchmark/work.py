"""Counting what layers do, operation by operation: floating-point operations, and bytes of weights read."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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

    To be used under `torch.no_grad`: in inference mode operations made of others come whole, unknown to the formulas.
    Attention is computed by plain matrix products, which count on every device; their FLOPs are the same.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counting = _Counting(model)
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._modes.enter_context(self._counting)
        return self

    def __exit__(self, *_: object) -> None:
        self._modes.close()

    def mark(self) -> Work:
        """Return the work done so far."""
        return self._counting.work

    def between(self, start: Work, end: Work) -> Work:
        """Return the work done from one mark to another."""
        return end - start

    def settle(self) -> None:
        """Do nothing: work is counted when it is given, not when it is done."""


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the work of every operation.

    FLOPs are those of torch's own `FlopCounterMode`, by the same formulas (matrix products and convolutions, nothing
    else). Bytes are those of the weights that operations take; of a table that is looked up, of the rows taken out.
    """

    _LOOKUPS = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = NOTHING
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler alone: by default a mode imports it, as FlopCounterMode does, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert not torch.is_inference_mode_enabled(), "count under no_grad"
        given = kwargs or {}
        result = func(*args, **given)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **given, out_val=result) if formula else 0
        self.work += Work(flops=flops, nbytes=self._bytes_read(func, args, result))
        return result

    def _bytes_read(self, func: Any, args: tuple[Any, ...], result: Any) -> int:
        read = [arg for arg in args if isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() in self._weights]
        if func.is_view or not read:
            return 0
        return int(result.nbytes) if func in self._LOOKUPS else sum(tensor.nbytes for tensor in read)
