"""Linear maps and embeddings in 8 bits: weights with a scale for each output channel, inputs with one for each row.

A row's scale is found when it comes, from that row alone: what else is in a batch changes nothing. Products are sums of
integers, exact; what is lost is the rounding of weights and inputs, each to a 254th of its largest.

M rows, I inputs, O outputs, V vocabulary, D width.
"""

import torch
from torch import Tensor, nn

from mmt_cli.model.context import Context
from mmt_cli.model.packing import linears_of, take_activation
from mmt_cli.model.pages import FilePages
from mmt_cli.model.processor import has_onednn

_MAX = 127
_ZERO = 128  # what a byte without a sign stands for nothing by; flipping its highest bit adds it
_TINY = 1e-20  # stands for the largest of a row of zeros
_ROWS = 128  # taken through all passes at a time, so that they find their numbers in the cache
_LEAST = 2**16  # numbers of a matrix: smaller ones are not worth the passes around the product


class Int8Linear(nn.Module):
    """A linear map, and the activation behind it where there is one; for inference alone."""

    def __init__(self, plain: nn.Linear, activation: nn.Module | None, table: "Int8Embedding | None" = None) -> None:
        """Take the parameters of another.

        Args:
            plain: the map.
            activation: what is applied to its outputs.
            table: the embedding whose numbers its matrix are, to be shared with it; None where it has its own.
        """
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self.activation = nn.Identity() if activation is None else activation
        self.plain = isinstance(self.activation, nn.Identity)
        self.product: OneDnnProduct | PlainProduct
        if table is not None:
            self.product = PlainProduct(table.values_VD, table.scale_V1[:, 0])
        else:
            values_OI, scale_O1 = quantised(plain.weight)
            self.product = (OneDnnProduct if can_multiply() else PlainProduct)(values_OI, scale_O1[:, 0])

    def forward(self, x_MI: Tensor, context: Context | None = None) -> Tensor:
        """Return MO, in the dtype of the input."""
        flat_MI = x_MI.reshape(-1, self.in_features)
        y_MO = flat_MI.new_empty(len(flat_MI), self.out_features)
        if len(flat_MI):
            for y_RO, x_RI in zip(torch.split(y_MO, _ROWS), torch.split(flat_MI, _ROWS), strict=True):
                self._write(x_RI, y_RO)
        return y_MO.view(*x_MI.shape[:-1], self.out_features)

    def _write(self, x_RI: Tensor, y_RO: Tensor) -> None:
        values_RI, scale_R1 = quantised(x_RI)
        product_RO = self.product(values_RI)
        done = self.plain and y_RO.dtype is product_RO.dtype
        scaled_RO = y_RO if done else product_RO
        if self.bias is None:
            torch.mul(product_RO, scale_R1, out=scaled_RO)
        else:
            torch.addcmul(self.bias, product_RO, scale_R1, out=scaled_RO)
        if not done:
            y_RO.copy_(self.activation(scaled_RO.to(y_RO.dtype)))


class OneDnnProduct:
    """Rows of integers times a matrix of integers, in oneDNN's layout and with its kernels.

    These multiply bytes without a sign by bytes with one, as VNNI does: for rows with a sign they have no kernel unless
    there is AMX, and fall back to loops a thousand times slower. So 128 is added to the rows, and named as their zero.
    """

    def __init__(self, values_OI: Tensor, scale_O: Tensor) -> None:
        self.values = torch.ops.onednn.qlinear_prepack(values_OI, None)
        self.scale_O, self.zeros_O = scale_O, torch.zeros_like(scale_O, dtype=torch.int32)

    def __call__(self, values_MI: Tensor) -> Tensor:
        """Return MO, float32, times the scales of the outputs."""
        multiply = torch.ops.onednn.qlinear_pointwise
        unsigned_MI = values_MI.view(torch.uint8).bitwise_xor(_ZERO)
        given = unsigned_MI, 1.0, _ZERO, self.values, self.scale_O, self.zeros_O  # the rows' scales come in afterwards
        y_MO: Tensor = multiply(*given, None, 1.0, 0, torch.float32, "none", [], "")
        return y_MO


class PlainProduct:
    """The same with the matrix as it is: where others read it, too, or oneDNN has no such kernels."""

    def __init__(self, values_OI: Tensor, scale_O: Tensor) -> None:
        self.values, self.scale_O = values_OI, scale_O

    def __call__(self, values_MI: Tensor) -> Tensor:
        """Return MO, float32, times the scales of the outputs."""
        return torch._int_mm(values_MI, self.values.T) * self.scale_O


def can_multiply() -> bool:
    """Say whether oneDNN multiplies 8-bit integers exactly here: without VNNI its sums may overflow."""
    return has_onednn() and hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()


class Int8Embedding(nn.Module):
    """A table that is looked up, with a scale for each row."""

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__()
        self.dtype = plain.weight.dtype
        self.values_VD: Tensor
        self.scale_V1: Tensor
        for name, tensor in zip(("values_VD", "scale_V1"), quantised(plain.weight), strict=True):
            self.register_buffer(name, tensor, persistent=False)

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
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    tables: dict[int, Int8Embedding] = {}  # by the matrix that they were
    with torch.no_grad():
        for parent, name, child in children:
            if type(child) is nn.Embedding:
                key = id(child.weight)
                tables[key] = tables.get(key) or Int8Embedding(child)
                setattr(parent, name, tables[key])
                pages.forget(child.weight)
        for parent, name, linear, _ in linears_of(model):
            table = tables.get(id(linear.weight))
            if linear.weight.numel() >= _LEAST or table is not None:
                setattr(parent, name, Int8Linear(linear, take_activation(parent, name), table))
                pages.forget(linear.weight)


def count_bytes(model: nn.Module) -> int:
    """Return how many weights of a model are held in 8 bits: those that are shared once."""
    found: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, Int8Linear):
            found[id(module.product.values)] = module.product.values.numel()
        elif isinstance(module, Int8Embedding):
            found[id(module.values_VD)] = module.values_VD.numel()
    return sum(found.values())
