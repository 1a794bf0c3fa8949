"""The one block of the project: an ordered list of residual sublayers, chosen from the config.

B batch, L sequence, D width.
"""

from typing import cast

from torch import Tensor, nn

from mmt_cli.model.attention import Context, CrossAttention, SelfAttention
from mmt_cli.model.config import BlockConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Mlp(nn.Module):
    """Two linear maps with an activation between them, each token by itself."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.down(self.dropout(self.activation(self.up(x_BLD)))))


class Residual(nn.Module):
    """A sublayer added to what came in, normalised before it (pre-norm, Xiong et al. 2020)."""

    def __init__(self, config: BlockConfig, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.inner = inner
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return x_BLD + cast("Tensor", self.dropout(self.inner(self.norm(x_BLD), context)))


class PostNormResidual(Residual):
    """The same, normalised after the sum (post-norm, Vaswani et al. 2017)."""

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.norm(x_BLD + self.dropout(self.inner(x_BLD, context))))


RESIDUALS: dict[str, type[Residual]] = {"pre": Residual, "post": PostNormResidual}


class Block(nn.ModuleDict):
    """Self-attention → cross-attention (where `memory_width` is given) → MLP, in this order."""

    def __init__(self, config: BlockConfig, memory_width: int | None = None) -> None:
        sublayers: dict[str, nn.Module] = {"attention": SelfAttention(config)}
        if memory_width is not None:
            sublayers["cross_attention"] = CrossAttention(config, memory_width)
        sublayers["mlp"] = Mlp(config)
        residual = RESIDUALS[config.norm]
        super().__init__({name: residual(config, inner) for name, inner in sublayers.items()})

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        """Return x_BLD after every sublayer."""
        for sublayer in self.values():
            x_BLD = sublayer(x_BLD, context)
        return x_BLD
