"""Linear maps whose matrix lies in memory as the processor's fastest kernels read it (oneDNN's own layouts).

A map lays its matrix out anew the first time it pays, in inference mode on a CPU; the plain one is dropped, so that
memory does not double. Whatever else is done with it (gradients, its state, a move to another device) brings the plain
matrix back, bit for bit. Which matrices are laid out, and when, depends on their shapes alone: nothing is timed.

M rows, I inputs, O outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.context import Context
from mmt_cli.model.layers import Linear
from mmt_cli.model.pages import FilePages
from mmt_cli.model.processor import can_pack, has_tiles, is_counted, mkl_is_at_home

# Measured on a Xeon with AMX and on an EPYC without: numbers of a matrix below which the plain kernels are as fast.
_LEAST: dict[torch.dtype, int] = {torch.float32: 2**19, torch.bfloat16: 2**16}
# On Intel's processors the plain float32 kernels are MKL's, which are as fast below these rows and faster above (2 to
# 12 % on a Xeon), but twice as slow at 8; on others they are the slower ones throughout: at one row, too, by half.
_ROWS_BESIDE_MKL = 8, 256
# A large matrix is read from memory, and without AMX rows too few to keep the processor busy do not read it as fast as
# six do (by 10 to 25 % on an EPYC, and two rows are slower than one): so they get company.
_LARGE = 2**20
_ROWS_THAT_READ_FAST = 6
# What oneDNN applies to the product before it leaves the cache: name and algorithm there.
_FUSED: dict[type[nn.Module], Callable[[Any], tuple[str, str]]] = {
    nn.ReLU: lambda _: ("relu", ""),
    nn.SiLU: lambda _: ("swish", ""),
    nn.GELU: lambda gelu: ("gelu", gelu.approximate),
}
_NOT_FUSED = ("none", "")


def pays(rows: int, dtype: torch.dtype) -> bool:
    """Say whether an input of so many rows is a reason to lay a matrix out anew."""
    least, most = _ROWS_BESIDE_MKL
    return dtype is not torch.float32 or not mkl_is_at_home() or least <= rows <= most


class PackedLinear(nn.Linear):
    """A linear map, and the activation behind it where there is one, that packs its matrix when it first pays.

    The packed matrix is its `weight` still, of the same shape and dtype, in a layout that only its kernels can read.
    """

    def __init__(self, plain: nn.Linear, activation: nn.Module | None, pages: FilePages, *, shared: bool) -> None:
        """Take the parameters of another.

        Args:
            plain: the map.
            activation: what is applied to its outputs.
            pages: of the files that weights may lie in.
            shared: whether another module holds the matrix, too.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.training = plain.training
        self.activation = nn.Identity() if activation is None else activation
        fused = _FUSED.get(type(self.activation))
        self.fused = _NOT_FUSED if fused is None else fused(self.activation)
        self.pages, self.shared = pages, shared
        self._kept: tuple[Tensor, ...] = ()  # the plain matrix while another module holds it, too

    def forward(self, x_MI: Tensor, context: Context | None = None) -> Tensor:
        """Return MO."""
        if not self._ready(x_MI):
            self.unpack()
            return cast("Tensor", self.activation(functional.linear(x_MI, self.weight, self.bias)))
        rows = x_MI.numel() // self.in_features
        if not self.weight.is_mkldnn:
            if not pays(rows, self.weight.dtype):
                return cast("Tensor", self.activation(functional.linear(x_MI, self.weight, self.bias)))
            self.pack()
        large = self.in_features * self.out_features >= _LARGE
        if rows < _ROWS_THAT_READ_FAST and large and not has_tiles() and not is_counted():
            y_MO = self._product(_in_company(x_MI.reshape(rows, -1)))[:rows].view(*x_MI.shape[:-1], -1)
        else:
            y_MO = self._product(x_MI)
        return y_MO if self.fused is not _NOT_FUSED else cast("Tensor", self.activation(y_MO))

    def _product(self, x_MI: Tensor) -> Tensor:
        name, algorithm = self.fused
        y_MO: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, self.weight, self.bias, name, [], algorithm)
        return y_MO

    def pack(self) -> None:
        """Lay the matrix out anew."""
        plain = self.weight
        # Made outside of inference mode, where it could not be changed back later.
        with torch.inference_mode(mode=False), torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(plain)
            self.weight = nn.Parameter(packed, requires_grad=False)
        self._kept = (plain,) if self.shared else ()
        self.pages.forget(plain)

    def unpack(self) -> None:
        """Bring the plain matrix back; where another module shares it, that very one."""
        if not self.weight.is_mkldnn:
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            plain = self._kept or (nn.Parameter(self.weight.to_dense(), requires_grad=False),)
            self.weight = cast("nn.Parameter", plain[0])
        self._kept = ()

    def _ready(self, x_MI: Tensor) -> bool:
        return torch.is_inference_mode_enabled() and x_MI.dtype == self.weight.dtype and x_MI.numel() > 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        self.unpack()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _in_company(x_MI: Tensor) -> Tensor:
    """Return as many rows as are read fast, the given ones first."""
    rows = len(x_MI)
    if rows == 1:
        return x_MI.expand(_ROWS_THAT_READ_FAST, -1)  # the same again: zeros would have to be written
    return functional.pad(x_MI, (0, 0, 0, _ROWS_THAT_READ_FAST - rows))


def pack_linears(model: nn.Module) -> None:
    """Let a model's linear maps pack themselves as they are used; changes nothing where this machine has no need of it.

    Those that are too small, of another dtype, or on another device stay as they are.
    """
    pages = FilePages()
    for parent, name, linear, shared in linears_of(model):
        dtype = linear.weight.dtype
        if linear.weight.device.type != "cpu" or linear.weight.requires_grad or not can_pack(dtype):
            continue
        if linear.weight.numel() >= _LEAST[dtype]:
            setattr(parent, name, PackedLinear(linear, take_activation(parent, name), pages, shared=shared))


def linears_of(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear, bool]]:
    """Return the plain linear maps of a model: parent, name in it, map, and whether another module holds its matrix."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return [
        (parent, name, child, holders[id(child.weight)] > 1)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and type(child) in (nn.Linear, Linear)
    ]


def take_activation(parent: nn.Module, name: str) -> nn.Module | None:
    """Take over what an MLP applies behind its first map: the map will apply it."""
    if name != "up" or not hasattr(parent, "activation"):
        return None
    activation = cast("nn.Module", parent.activation)
    parent.activation = nn.Identity()
    return activation
