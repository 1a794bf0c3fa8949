"""Linear maps and embeddings in 8 bits: weights with a scale for each output channel, inputs with one for each row.

A row's scale is found when it comes, from that row alone: what else is in a batch changes nothing. Products are sums of
integers, exact; what is lost is the rounding of weights and inputs, each to a 254th of its largest.

M rows, I inputs, O outputs, V vocabulary, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mmt_cli.model.context import Context
from mmt_cli.model.packing import has_onednn, linears_of, take_activation
from mmt_cli.model.pages import FilePages

_MAX = 127
_TINY = 1e-20  # stands for the largest of a row of zeros
_ROWS = 128  # taken through all passes at a time, so that they find their numbers in the cache
_LEAST = 2**16  # numbers of a matrix: smaller ones are not worth the passes around the product


class Int8Linear(nn.Module):
    """A linear map, and the activation behind it where there is one; for inference alone."""

    def __init__(self, plain: nn.Linear, activation: nn.Module | None) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self.activation = nn.Identity() if activation is None else activation
        values_OI, scale_O1 = quantised(plain.weight)
        self.product = (OneDnnProduct if can_multiply() else PlainProduct)(values_OI, scale_O1[:, 0])

    def forward(self, x_MI: Tensor, context: Context | None = None) -> Tensor:
        """Return MO, in the dtype of the input."""
        flat_MI = x_MI.reshape(-1, self.in_features)
        if len(flat_MI) <= _ROWS:
            return self._part(flat_MI).view(*x_MI.shape[:-1], self.out_features)
        y_MO = flat_MI.new_empty(len(flat_MI), self.out_features)
        for y_RO, x_RI in zip(torch.split(y_MO, _ROWS), torch.split(flat_MI, _ROWS), strict=True):
            y_RO.copy_(self._part(x_RI))
        return y_MO.view(*x_MI.shape[:-1], self.out_features)

    def _part(self, x_RI: Tensor) -> Tensor:
        if not len(x_RI):
            return x_RI.new_empty(0, self.out_features)
        values_RI, scale_R1 = quantised(x_RI)
        y_RO = self.product(values_RI)
        y_RO = y_RO.mul_(scale_R1) if self.bias is None else torch.addcmul(self.bias, y_RO, scale_R1)
        return cast("Tensor", self.activation(y_RO.to(x_RI.dtype)))


class OneDnnProduct:
    """Rows of integers times a matrix of integers, in oneDNN's layout and with its kernels."""

    def __init__(self, values_OI: Tensor, scale_O: Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(values_OI, None)
        self.scale_O, self.zeros_O = scale_O, torch.zeros_like(scale_O, dtype=torch.int32)

    def __call__(self, values_MI: Tensor) -> Tensor:
        """Return MO, float32, times the scales of the outputs."""
        multiply = torch.ops.onednn.qlinear_pointwise
        given = values_MI, 1.0, 0, self.packed, self.scale_O, self.zeros_O  # the inputs' scales come in afterwards
        y_MO: Tensor = multiply(*given, None, 1.0, 0, torch.float32, "none", [], "")
        return y_MO


class PlainProduct:
    """The same where oneDNN has no such kernels."""

    def __init__(self, values_OI: Tensor, scale_O: Tensor) -> None:
        self.values_IO, self.scale_O = values_OI.T, scale_O

    def __call__(self, values_MI: Tensor) -> Tensor:
        """Return MO, float32, times the scales of the outputs."""
        return torch._int_mm(values_MI, self.values_IO) * self.scale_O


def can_multiply() -> bool:
    """Say whether oneDNN multiplies 8-bit integers exactly here: without VNNI its sums may overflow."""
    return has_onednn() and hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()


class Int8Embedding(nn.Module):
    """A table that is looked up, with a scale for each row."""

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__()
        self.dtype = plain.weight.dtype
        self.values_VD, self.scale_V1 = quantised(plain.weight)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return BTD."""
        return (self.values_VD[ids_BT] * self.scale_V1[ids_BT]).to(self.dtype)


def quantised(x_MI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of each row as int8, and scale_M1, float32, that they are to be multiplied with."""
    x_MI = x_MI.float()
    scale_M1 = x_MI.abs().amax(dim=-1, keepdim=True).clamp_min_(_TINY).mul_(1 / _MAX)
    return torch.mul(x_MI, scale_M1.reciprocal()).round_().to(torch.int8), scale_M1


def quantise(model: nn.Module) -> None:
    """Turn a model's linear maps, and the tables of its tokens, into their 8-bit kind; for inference alone.

    Convolutions, norms, positions and biases stay as they are, and so do matrices too small to matter.
    """
    pages = FilePages()
    tables = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    with torch.no_grad():
        for parent, name, linear, _ in linears_of(model):
            if linear.weight.numel() >= _LEAST:
                setattr(parent, name, Int8Linear(linear, take_activation(parent, name)))
                pages.forget(linear.weight)
        for parent, name, child in tables:
            if type(child) is nn.Embedding:
                setattr(parent, name, Int8Embedding(child))
                pages.forget(child.weight)
