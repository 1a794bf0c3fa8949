"""Low-rank adapters (LoRA, Hu et al. 2021): a few numbers learn what a frozen matrix lacks.

D inputs of a linear map, O its outputs, K the rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.errors import UsageError, shown
from mmt_cli.model.layers import Linear
from mmt_cli.model.transformer import MultimodalTransformer

DEFAULT_TARGETS = ("blocks.*attention.inner.*",)  # in the text's blocks, cross-attention too
_SCALE = 2.0  # alpha is twice the rank, whatever the rank


class Adapted(nn.Module):
    """A linear map with an adapter beside it, which starts at zero: `W x + 2 B A x`."""

    lora_a: nn.Parameter  # KD
    lora_b: nn.Parameter  # OK

    def forward(self, x_BLD: Tensor, *context: object) -> Tensor:
        """Return what the linear map returns, and the adapter's part."""
        low_BLK = functional.linear(x_BLD, self.lora_a)
        plain: Tensor = super().forward(x_BLD, *context)
        return plain + _SCALE * functional.linear(low_BLK, self.lora_b)


class AdaptedLinear(Adapted, nn.Linear):
    """An adapted linear map."""


class AdaptedContextLinear(Adapted, Linear):
    """An adapted linear map of attention."""


_ADAPTED: dict[type[nn.Module], type[Adapted]] = {nn.Linear: AdaptedLinear, Linear: AdaptedContextLinear}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}


def adapt(model: MultimodalTransformer, rank: int, targets: Sequence[str], *, frozen: Sequence[str] = ()) -> None:
    """Put adapters to linear maps of the model, in place; they alone are trained from then on.

    Args:
        model: the class of its adapted parts changes, the names of its weights do not.
        rank: of the adapters.
        targets: names as `mmt inspect` has them; `*` stands for any characters, and a name's last part for all of it.
        frozen: beginnings of the names of maps that stay as they are.

    Raises:
        UsageError: a target names no linear map, or the rank is larger than one of them.
    """
    # A tied head shares its matrix with the token embedding, which an adapter of the head alone would pull apart.
    linear = {name: m for name, m in model.named_modules() if type(m) in _ADAPTED and not name.startswith("head.")}
    chosen: dict[str, nn.Module] = {}
    for target in targets:
        found = {name: module for name, module in linear.items() if _matches(name, target)}
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UsageError(f"no linear map has this name (--lora-targets {shown(target)}, known: {known}); change it")
        chosen |= {name: module for name, module in found.items() if not name.startswith(tuple(frozen))}
    if not chosen:
        raise UsageError(f"all adapters would be in frozen parts (--lora-targets {targets[0]}); change --freeze")
    model.requires_grad_(False)
    for name, module in chosen.items():
        _add_adapter(name, module, rank)


def _matches(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or name.rpartition(".")[2] == target


def _add_adapter(name: str, module: nn.Module, rank: int) -> None:
    weight = cast("nn.Linear", module).weight
    outputs, inputs = weight.shape
    if rank > min(outputs, inputs):
        raise UsageError(f"the rank is larger than a matrix (--lora {rank}, {name} {outputs} x {inputs}); lower it")
    module.lora_a = nn.Parameter(weight.new_empty(rank, inputs))
    module.lora_b = nn.Parameter(weight.new_zeros(outputs, rank))
    nn.init.kaiming_uniform_(module.lora_a, a=math.sqrt(5))
    _become(module, _ADAPTED[type(module)])


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Let the model be a plain one, each adapter added to its matrix, and afterwards what it was, to the bit."""
    adapted = [module for module in model.modules() if isinstance(module, Adapted)]
    kept = [(module, cast("nn.Linear", module).weight, module.lora_a, module.lora_b) for module in adapted]
    before = [weight.data for _, weight, _, _ in kept]
    try:
        for (module, weight, a_KD, b_OK), weight_OD in zip(kept, before, strict=True):
            weight.data = torch.addmm(weight_OD, b_OK.detach(), a_KD.detach(), alpha=_SCALE)
            del module.lora_a, module.lora_b
            _become(module, _PLAIN[type(module)])
        yield
    finally:
        for (module, weight, a_KD, b_OK), weight_OD in zip(kept, before, strict=True):
            weight.data = weight_OD
            module.lora_a, module.lora_b = a_KD, b_OK
            _become(module, _ADAPTED.get(type(module), type(module)))


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind
