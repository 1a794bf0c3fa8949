"""A convolutional tower's fast form on a CPU: each convolution takes norm, ReLU6 and the sum with the input along.

Its weights lie in memory as oneDNN reads them. Plain convolutions fold the norm and lay their weights out anew at every
call, and pass over the largest tensors of the tower twice more.

B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmt_cli.model.convnet import ConvNorm, InvertedResidual
from mmt_cli.model.processor import can_pack

_NOT_FUSED: tuple[str, list[float]] = ("none", [])


class PackedConvNorm(ConvNorm):
    """Convolution, batch norm and activation in one kernel, in inference mode; what it was everywhere else.

    The plain weights stay beside the packed ones, for folding cannot be undone bit for bit: a tower's are few, 20 MB.
    """

    def __init__(self, plain: ConvNorm) -> None:
        """Take the parts of another."""
        nn.Module.__init__(self)
        self.kernel, self.stride = plain.kernel, plain.stride
        self.conv, self.norm, self.activation = plain.conv, plain.norm, plain.activation
        self.training = plain.training
        self._packed: tuple[Tensor, Tensor] | None = None  # weight in oneDNN's layout, and bias

    def forward(self, x_BCHW: Tensor, skip_BCHW: Tensor | None = None) -> Tensor:
        """Return BCHW, the sides divided by the stride and rounded up, with `skip_BCHW` added to it."""
        if not self._ready(x_BCHW):
            self._packed = None  # the weights may be about to change
            y_BCHW = super().forward(x_BCHW)
            return y_BCHW if skip_BCHW is None else y_BCHW + skip_BCHW
        x_BCHW, padding = self.padded(x_BCHW)
        how = [*padding], [self.stride] * 2, [1, 1], self.conv.groups
        if self._packed is None:
            weight, bias_C = self.folded()
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x_BCHW.shape))
            self._packed = packed, bias_C
        if skip_BCHW is not None:
            return cast(
                "Tensor",
                torch.ops.mkldnn._convolution_pointwise.binary(
                    x_BCHW, skip_BCHW, *self._packed, *how, "add", 1.0, None, [], None
                ),
            )
        name, bounds = ("hardtanh", [0.0, 6.0]) if isinstance(self.activation, nn.ReLU6) else _NOT_FUSED
        return cast("Tensor", torch.ops.mkldnn._convolution_pointwise(x_BCHW, *self._packed, *how, name, bounds, ""))

    def _ready(self, x_BCHW: Tensor) -> bool:
        weight = self.conv.weight
        return (
            torch.is_inference_mode_enabled()
            and not self.norm.training
            and x_BCHW.numel() > 0
            and weight.device.type == "cpu"
            and x_BCHW.dtype == weight.dtype
            and can_pack(weight.dtype)
        )

    def __getstate__(self) -> dict[str, Any]:
        # Tensors in oneDNN's layout cannot be copied or written.
        return {**self.__dict__, "_packed": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedConvNorm":
        self._packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class PackedResidual(InvertedResidual):
    """The block of packed convolutions: what comes in is added as the last of them writes."""

    def __init__(self, plain: InvertedResidual) -> None:
        """Take the parts of another."""
        nn.Module.__init__(self)
        self.expand = PackedConvNorm(plain.expand) if isinstance(plain.expand, ConvNorm) else plain.expand
        self.depthwise, self.project = PackedConvNorm(plain.depthwise), PackedConvNorm(plain.project)
        self.skip, self.training = plain.skip, plain.training

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return BCHW, the sides divided by the stride and rounded up."""
        return cast("Tensor", self.project(self.depthwise(self.expand(x_BCHW)), x_BCHW if self.skip else None))


def pack_convolutions(model: nn.Module) -> None:
    """Let the convolutions of a model's tower pack themselves as they are used, where this machine has the kernels."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is InvertedResidual:
                setattr(parent, name, PackedResidual(child))
            elif type(child) is ConvNorm and not isinstance(parent, InvertedResidual):
                setattr(parent, name, PackedConvNorm(child))
