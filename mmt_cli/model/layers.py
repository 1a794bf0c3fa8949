"""The small parts of a block: norms, linear maps and MLPs, and experts that keep one of them for each modality.

B batch, L sequence, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.block_config import Activation, BlockConfig
from mmt_cli.model.context import Context
from mmt_cli.model.dropout import Dropout


class RMSNorm(nn.RMSNorm):
    """Root mean square norm in its weight's dtype, as autocast has layer norm: mixed dtypes have no fast kernel."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return BLD."""
        return super().forward(x_BLD.to(self.weight.dtype))


class RMSNormPlusOne(nn.Module):
    """The same with a weight that starts at zero and counts from one (Gemma); float32 inside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return BLD."""
        scale_D = 1.0 + self.weight.float()
        return functional.rms_norm(x_BLD.float(), scale_D.shape, scale_D, self.eps).to(x_BLD.dtype)


class QuickGELU(nn.Module):
    """x times the logistic function of 1.702 x, the approximation that CLIP was trained with."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return BLD."""
        gate_BLD = (1.702 * x_BLD).sigmoid_()
        # The gate's memory is good for the product, unless gradients need the gate.
        return x_BLD * gate_BLD if torch.is_grad_enabled() else gate_BLD.mul_(x_BLD)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": RMSNorm,
    "rmsnorm_plus_one": RMSNormPlusOne,
}


def build_norm(config: BlockConfig, width: int | None = None) -> nn.Module:
    """Return the block's kind of norm, over its own width or another."""
    return NORMS[config.norm_kind](config.width if width is None else width, config.norm_eps)


class Linear(nn.Linear):
    """A linear map that treats all tokens alike."""

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        """Return BLD."""
        return super().forward(x_BLD)


class Mlp(nn.Module):
    """Two linear maps with an activation between them, each token by itself."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = Dropout(config.dropout)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.down(self.dropout(self.activation(self.up(x_BLD)))))


class GatedMlp(Mlp):
    """The same with a second map that multiplies the activated one (GLU variants, Shazeer 2020)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.multiplier = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        inner_BLM = self.activation(self.up(x_BLD)) * self.multiplier(x_BLD)
        return cast("Tensor", self.down(self.dropout(inner_BLM)))


class Experts(nn.ModuleDict):
    """One part for each modality; each token goes through its own (VLMo, BEiT-3, Mixture-of-Transformers)."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__({"image": build(), "text": build()})

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        if context.image_BL is None:
            return cast("Tensor", self["text"](x_BLD, context))
        image_BL = context.image_BL.expand(x_BLD.shape[:2])
        of_image = self["image"](x_BLD[image_BL], context)
        of_text = self["text"](x_BLD[~image_BL], context)
        y_BLD: Tensor = of_text.new_empty(*x_BLD.shape[:2], of_text.shape[-1])
        y_BLD[image_BL], y_BLD[~image_BL] = of_image, of_text
        return y_BLD


def build_linear(config: BlockConfig, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """Return a projection of attention: one for all tokens, or one for each modality."""

    def linear() -> nn.Module:
        return Linear(inputs, outputs, bias=bias)

    return Experts(linear) if config.experts == "attention+mlp" else linear()


def build_mlp(config: BlockConfig) -> nn.Module:
    """Return the block's MLP: one for all tokens, or one for each modality."""

    def mlp() -> nn.Module:
        return GatedMlp(config) if config.gated else Mlp(config)

    return mlp() if config.experts == "none" else Experts(mlp)


class LayerScale(nn.Module):
    """A learned factor for each channel, small at the start (Touvron et al. 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), start))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return BLD."""
        return x_BLD * self.factor
