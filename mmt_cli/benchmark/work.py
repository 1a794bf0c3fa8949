"""Counting what layers do, operation by operation: floating-point operations, bytes read, memory taken.

B batch, H heads, Q queries, K keys, E head width.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmt_cli.benchmark.live import LiveMemory, is_opaque

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Products that torch has no formula for, of weights packed by oneDNN or MKL, or in 8 bits: the rows come first.
_LINEAR = (
    *("mkldnn::_linear_pointwise", "mkldnn::_linear_pointwise.binary", "mkl::_mkl_linear"),
    *("onednn::qlinear_pointwise", "aten::_int_mm"),
)
_CONVOLUTIONS = ("mkldnn::_convolution_pointwise", "mkldnn::_convolution_pointwise.binary")


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
    """Adds up the work of every operation.

    FLOPs are those of matrix products and convolutions, nothing else, by the formulas of torch's own `FlopCounterMode`
    and by those below where torch has none or counts too much. Attention counts as its plain matrix products whatever
    kernel computes it, two forward and four backward, without those that a fused kernel does again. So devices agree,
    and nothing the size of all scores is made where the model does not make it. Bytes are those of the weights that
    operations take, of a table that is looked up those of the rows taken out, and of fused attention's keys and values.
    """

    _LOOKUPS = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)

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
        self.work += Work(flops=_flops(func, args, given, result), nbytes=self._bytes_read(func, args, result))
        self.memory.made(args, result)
        return result

    def _bytes_read(self, func: Any, args: tuple[Any, ...], result: Any) -> int:
        if func.name().startswith("aten::_scaled_dot_product_"):
            backward = func.name().endswith("_backward")
            return sum(map(_distinct_nbytes, args[1 + backward : 3 + backward]))
        # Optimizers take lists of weights.
        given = itertools.chain.from_iterable(arg if isinstance(arg, list) else [arg] for arg in args)
        read = [arg for arg in given if isinstance(arg, Tensor) and self._is_weight(arg)]
        if func.is_view or not read:
            return 0
        return int(result.nbytes) if func in self._LOOKUPS else sum(map(_distinct_nbytes, read))

    def _is_weight(self, tensor: Tensor) -> bool:
        """Say whether a tensor belongs to the model; only packed weights are opaque."""
        return is_opaque(tensor) or tensor.untyped_storage().data_ptr() in self._weights


@functools.cache
def _is_composite(name: str) -> bool:
    """Say whether an operation is made of others, by code of torch's own."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, _COMPOSITE)


def _distinct_nbytes(tensor: Tensor) -> int:
    """Return the bytes of the elements, those that an expanded tensor repeats once."""
    if is_opaque(tensor):
        return int(tensor.nbytes)
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.itemsize


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    name = func.name()
    if name.startswith("aten::_scaled_dot_product_"):
        backward = name.endswith("_backward")  # the gradient of the output comes first there
        return (4 if backward else 2) * _product_flops(*args[backward : backward + 3])
    if func is torch.ops.aten.convolution_backward.default:
        return _convolution_backward_flops(*args)
    if func is torch.ops.aten.mv.default:
        return 2 * int(args[0].numel())
    if name in _CONVOLUTIONS:
        weight = args[2 if name.endswith(".binary") else 1]
        return 2 * int(result.numel()) * math.prod(map(int, weight.shape[1:]))
    if name in _LINEAR:
        return 2 * int(args[0].numel()) * int(result.shape[-1])
    formula = flop_registry.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _product_flops(q_BHQE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor) -> int:
    """Return the FLOPs of one of attention's matrix products, the mean where values are of another width than keys.

    Keys and values may have fewer heads than queries.
    """
    batch, heads, queries, width = q_BHQE.shape
    return batch * heads * queries * k_BHKE.shape[-2] * (width + v_BHKE.shape[-1])


def _convolution_backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Return as many as forward for each of the two gradients that is wanted; torch's formula ignores groups."""
    *_, transposed, _output_padding, _groups, wanted = rest
    places = (x if transposed else grad).numel()
    return 2 * places * weight[0].numel() * (bool(wanted[0]) + bool(wanted[1]))
