"""Gates: how much of an update is let through, learned as one number or computed from content.

B batch, L sequence, T text tokens, N image tokens, S summary (image and text, 2 D), D width.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


class OpenGate(nn.Module):
    """Lets everything through."""

    def forward(self, update_BLD: Tensor, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return the update."""
        return update_BLD


class Gate(nn.Module):
    """Multiplies the update by a factor from -1 to 1; where it comes from is the subclass's."""

    def reset(self) -> None:
        """Close the gate, whatever the content."""
        raise NotImplementedError

    def value(self, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return the factor, which broadcasts to BL1."""
        raise NotImplementedError

    def forward(self, update_BLD: Tensor, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return the part of the update that is let through."""
        return update_BLD * self.value(x_BLD, summary_BLS).to(update_BLD.dtype)


class TanhGate(Gate):
    """One learned number, zero at the start: the update comes in as training asks for it (Flamingo)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def reset(self) -> None:
        """Set the number to zero."""
        nn.init.zeros_(self.strength)

    def value(self, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return one factor for all tokens."""
        return self.strength.tanh()


class DynamicGate(Gate):
    """A number for each token, from the token and what it may know of image and text; zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * width, 1)

    def reset(self) -> None:
        """Set the map to zero."""
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def value(self, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return a factor for each token, BL1."""
        assert summary_BLS is not None, "a dynamic gate without a summary"
        return cast("Tensor", self.projection(torch.cat([x_BLD, summary_BLS], dim=-1)).tanh())


GATES: dict[str, Callable[[int], Gate]] = {"tanh": TanhGate, "dynamic": DynamicGate}


def build_gate(kind: str, width: int) -> nn.Module:
    """Return the gate that a config names."""
    return GATES[kind](width) if kind in GATES else OpenGate()


def running_sum(x_BTD: Tensor, counted_BT: Tensor, before_BD: Tensor | None = None) -> Tensor:
    """Return the sum of the counted tokens up to and with each, on top of those before; float32."""
    sum_BTD = (x_BTD * counted_BT[..., None]).float().cumsum(dim=1)
    return sum_BTD if before_BD is None else sum_BTD + before_BD[:, None]
