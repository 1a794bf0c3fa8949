"""Counting what layers do, operation by operation: floating-point operations, and bytes of weights read.

B batch, H heads, Q queries, K keys, E head width.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
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

    Not to be used in inference mode: operations made of others come whole there, unknown to the formulas.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counting = _Counting(model)

    def __enter__(self) -> Self:
        self._counting.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *ending: Any) -> None:
        self._counting.__exit__(*ending)  # type: ignore[no-untyped-call]

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

    FLOPs are those of matrix products and convolutions, nothing else, by the formulas of torch's own `FlopCounterMode`
    and by those below where torch has none or counts too much. Attention counts as its plain matrix products whatever
    kernel computes it, two forward and four backward, without those that a fused kernel does again. So devices agree,
    and nothing the size of all scores is made where the model does not make it. Bytes are those of the weights that
    operations take; of a table that is looked up, of the rows taken out.
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
        assert not torch.is_inference_mode_enabled(), "count outside of inference mode"
        given = kwargs or {}
        result = func(*args, **given)
        self.work += Work(flops=_flops(func, args, given, result), nbytes=self._bytes_read(func, args, result))
        return result

    def _bytes_read(self, func: Any, args: tuple[Any, ...], result: Any) -> int:
        # Optimizers take lists of weights.
        given = itertools.chain.from_iterable(arg if isinstance(arg, list) else [arg] for arg in args)
        read = [arg for arg in given if isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() in self._weights]
        if func.is_view or not read:
            return 0
        return int(result.nbytes) if func in self._LOOKUPS else sum(map(_distinct_nbytes, read))


def _distinct_nbytes(tensor: Tensor) -> int:
    """Return the bytes of the elements, those that an expanded tensor repeats once."""
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
