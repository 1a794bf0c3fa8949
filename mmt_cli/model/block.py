"""The one block of the project: an ordered list of residual sublayers, chosen from the config.

B batch, L sequence, N image tokens, D width.
"""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from mmt_cli.model.attention import CrossAttention, SelfAttention
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.context import Context
from mmt_cli.model.dropout import Dropout
from mmt_cli.model.gate import OpenGate
from mmt_cli.model.layers import LayerScale, build_mlp, build_norm
from mmt_cli.model.mask import Visibility
from mmt_cli.model.reduction import merge_tokens

NEED_MEMORY = ("cross_attention", "cross_mlp")


class Residual(nn.Module):
    """A sublayer added to what came in, normalised before it (pre-norm, Xiong et al. 2020)."""

    def __init__(self, config: BlockConfig, inner: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = build_norm(config)
        self.inner = inner
        self.dropout = Dropout(config.dropout)
        start = config.layer_scale
        self.scale = nn.Identity() if start is None else LayerScale(config.width, start)
        self.gate = OpenGate() if gate is None else gate

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return x_BLD + self.update(x_BLD, self.norm(x_BLD), context)

    def update(self, x_BLD: Tensor, input_BLD: Tensor, context: Context) -> Tensor:
        """Return what the sublayer adds to `x_BLD`, computed from `input_BLD`."""
        update_BLD = self.scale(self.dropout(self.inner(input_BLD, context)))
        return cast("Tensor", self.gate(update_BLD, x_BLD, context.summary_BLS))


class PostNormResidual(Residual):
    """The same, normalised after the sum (post-norm, Vaswani et al. 2017)."""

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.norm(x_BLD + self.update(x_BLD, x_BLD, context)))


class SandwichResidual(Residual):
    """The same, normalised before the sublayer and again before the sum (Ding et al. 2021, Gemma 2)."""

    def __init__(self, config: BlockConfig, inner: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__(config, Then(inner, build_norm(config)), gate)


class Then(nn.Module):
    """A sublayer and a norm of its output."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norm = norm

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.norm(self.inner(x_BLD, context)))


RESIDUALS: dict[str, type[Residual]] = {"pre": Residual, "post": PostNormResidual, "sandwich": SandwichResidual}


class Block(nn.ModuleDict):
    """Residual sublayers in the order given; those that read the memory are passed over where there is none."""

    def __init__(self, sublayers: Mapping[str, Residual]) -> None:
        super().__init__(sublayers)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return x_BLD after every sublayer; of the text alone where nothing else is read out."""
        for name, sublayer in self.items():
            if context.has_memory or name not in NEED_MEMORY:
                x_BLD = sublayer(x_BLD, context)
            if name == "attention" and context.text is not None:  # no token looks at the others any more
                x_BLD, context = x_BLD[:, context.text], context.of_text()
        return x_BLD


class MergingBlock(Block):
    """Self-attention, merging of like image tokens, MLP (ToMe, Bolya et al. 2023).

    A token that stands for several patches counts as many: the logarithm of its size is added to its scores.
    """

    def __init__(self, config: BlockConfig, merged: int, extra: int) -> None:
        super().__init__(_plain(config))
        self.merged, self.extra = merged, extra

    def forward(self, x_BND: Tensor, size_BN: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return fewer tokens, class tokens first, and their sizes in patches, float32."""
        bias_BN = size_BN.log().to(x_BND.dtype)
        context = Context(visibility=Visibility.of_image(x_BND.shape[1], None, x_BND.device, bias_BN))
        x_BND = self["attention"](x_BND, context)
        x_BND, size_BN = merge_tokens(x_BND, size_BN, self.merged, self.extra)
        return self["mlp"](x_BND, context), size_BN


def plain_block(config: BlockConfig, num_tokens: int | None = None) -> Block:
    """Return self-attention → MLP; `num_tokens` is the length, where it is always the same."""
    return Block(_plain(config, num_tokens))


def cross_block(config: BlockConfig, memory_width: int, gate: nn.Module) -> Block:
    """Return self-attention → cross-attention → MLP."""
    plain = _plain(config)
    cross = RESIDUALS[config.norm](config, CrossAttention(config, memory_width), gate)
    return Block({"attention": plain["attention"], "cross_attention": cross, "mlp": plain["mlp"]})


def gated_cross_block(config: BlockConfig, memory_width: int, gates: tuple[nn.Module, nn.Module]) -> Block:
    """Return gated cross-attention → gated MLP → self-attention → MLP (Flamingo, Alayrac et al. 2022)."""
    residual = RESIDUALS[config.norm]
    return Block(
        {
            "cross_attention": residual(config, CrossAttention(config, memory_width), gates[0]),
            "cross_mlp": residual(config, build_mlp(config), gates[1]),
            **_plain(config),
        }
    )


def _plain(config: BlockConfig, num_tokens: int | None = None) -> dict[str, Residual]:
    residual = RESIDUALS[config.norm]
    return {
        "attention": residual(config, SelfAttention(config, num_tokens)),
        "mlp": residual(config, build_mlp(config)),
    }
