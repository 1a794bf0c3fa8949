"""What torch's operations cost, one by one: floating-point operations, and bytes read of weights, keys and values.

FLOPs are those of matrix products and convolutions, nothing else, by the formulas of torch's own `FlopCounterMode`, and
by those below where torch has none or counts too much. Attention counts as its plain matrix products whatever kernel
computes it, two forward and four backward, without those that a fused kernel does again. So devices agree, and nothing
the size of all scores is made where the model does not make it.

B batch, H heads, G heads of keys and values, Q queries, K keys, E head width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_ATTENTION = "aten::_scaled_dot_product_"
_LOOKUPS = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)
# Products that torch has no formula for, of weights packed by oneDNN or MKL, or in 8 bits: the rows come first.
_LINEAR = (
    *("mkldnn::_linear_pointwise", "mkldnn::_linear_pointwise.binary", "mkl::_mkl_linear"),
    *("onednn::qlinear_pointwise", "aten::_int_mm"),
)
_CONVOLUTIONS = ("mkldnn::_convolution_pointwise", "mkldnn::_convolution_pointwise.binary")


def is_opaque(tensor: Tensor) -> bool:
    """Say whether a tensor is in a layout of oneDNN's own, whose storage torch does not show."""
    return tensor.is_mkldnn


def flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the floating-point operations of an operation; a multiplication with its addition is two."""
    name = func.name()
    if name.startswith(_ATTENTION):
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


def bytes_read(func: Any, args: tuple[Any, ...], result: Any, weights: Sequence[Tensor]) -> int:
    """Return the bytes that an operation reads of keys and values, or else of weights.

    Args:
        func: the operation.
        args: what it is given by position.
        result: what it returns.
        weights: those among its arguments; of a table that is looked up the rows taken out count.
    """
    if func.name().startswith(_ATTENTION):
        backward = func.name().endswith("_backward")
        return sum(map(_distinct_nbytes, args[1 + backward : 3 + backward]))
    if func.is_view or not weights:
        return 0
    return int(result.nbytes) if func in _LOOKUPS else sum(map(_distinct_nbytes, weights))


def _distinct_nbytes(tensor: Tensor) -> int:
    """Return the bytes of the elements, those that an expanded tensor repeats once."""
    if is_opaque(tensor):
        return int(tensor.nbytes)
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.itemsize


def _product_flops(q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor) -> int:
    """Return the FLOPs of one of attention's matrix products, the mean where values are of another width than keys."""
    batch, heads, queries, width = q_BHQE.shape
    return int(batch * heads * queries * k_BGKE.shape[-2] * (width + v_BGKE.shape[-1]))


def _convolution_backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Return as many as forward for each of the two gradients that is wanted; torch's formula ignores groups."""
    *_, transposed, _output_padding, _groups, wanted = rest
    places = (x if transposed else grad).numel()
    return 2 * places * weight[0].numel() * (bool(wanted[0]) + bool(wanted[1]))
