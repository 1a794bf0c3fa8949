"""The configuration of one transformer block and of its attention kernel.

Each kernel declares what it supports: `masks` (who sees whom may differ from row to row, keys may have a bias),
`causal` (no later token mixes into an earlier one), `cacheable` (what was read stays valid), `any_length`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mmt_cli.errors import ConfigError
from mmt_cli.model.schema import Config, bounded


@dataclass(frozen=True, kw_only=True)
class FullKernelConfig(Config):
    """Softmax attention over everything visible."""

    kind: Literal["full"] = "full"
    masks: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    cacheable: ClassVar[bool] = True
    any_length: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class SlidingWindowKernelConfig(Config):
    """Softmax attention over what is near: a square of cells of the picture, the last words of the text.

    Between the modalities nothing is cut: text sees the whole picture.
    """

    kind: Literal["sliding_window"] = "sliding_window"
    image_window: int = bounded(1, 8_191, 7)  # side of the square around a cell
    text_window: int = bounded(1, 1_048_576, 32)  # words, the reading one among them
    masks: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    cacheable: ClassVar[bool] = True
    any_length: ClassVar[bool] = True

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        if self.image_window % 2 == 0:
            around = f"{self.image_window - 1} or {self.image_window + 1}"
            raise ConfigError(f"an even window has no centre (image_window {self.image_window}); use {around}")


@dataclass(frozen=True, kw_only=True)
class LinformerKernelConfig(Config):
    """Softmax attention over `rank` learned mixtures of the keys: images of one size alone."""

    kind: Literal["linformer"] = "linformer"
    rank: int = bounded(1, 65_536, 64)
    masks: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    cacheable: ClassVar[bool] = False
    any_length: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class PerformerKernelConfig(Config):
    """Softmax attention estimated through `features` positive random features (FAVOR+), linear in the length."""

    kind: Literal["performer"] = "performer"
    features: int = bounded(1, 65_536, 256)
    masks: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    cacheable: ClassVar[bool] = True
    any_length: ClassVar[bool] = True


Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
KernelConfig = FullKernelConfig | SlidingWindowKernelConfig | LinformerKernelConfig | PerformerKernelConfig


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """One transformer block: self-attention, then cross-attention where there is a memory, then the MLP."""

    width: int = bounded(1, 65_536)
    num_heads: int = bounded(1, 1_024)
    num_kv_heads: int | None = bounded(1, 1_024, None)  # fewer share their keys and values (grouped queries)
    head_dim: int | None = bounded(1, 65_536, None)  # of one head; None: the heads share out the width
    mlp_width: int = bounded(1, 262_144)
    norm: Literal["pre", "post", "sandwich"] = "pre"
    norm_kind: Literal["layernorm", "rmsnorm", "rmsnorm_plus_one"] = "layernorm"
    norm_eps: float = bounded(1e-12, 1.0, 1e-5)  # at 0 a token of zeros would be NaN
    activation: Activation = "gelu"
    gated: bool = False  # a second map multiplies the activated one: with silu, SwiGLU
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = bounded(0.0, 10.0, None)  # start value of a learned factor for each channel
    rope: Literal["none", "1d", "2d", "multimodal"] = "none"
    rope_theta: float = bounded(1.0, 1e9, 10_000.0)
    kernel: KernelConfig = FullKernelConfig()
    experts: Literal["none", "mlp", "attention+mlp"] = "none"  # weights of its own for each modality
    dropout: float = bounded(0.0, 0.9, 0.0)

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(
                f"heads do not divide the width (num_heads {self.num_heads}, width {self.width}); fit them"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"keys and values cannot be shared evenly (num_kv_heads {self.num_kv_heads}, "
                f"num_heads {self.num_heads}); use a divisor"
            )
        parts = {"none": 1, "1d": 2, "2d": 4, "multimodal": 8}[self.rope]
        if self.head_width % parts:
            raise ConfigError(
                f"rotary positions need heads whose width {parts} divides (rope {self.rope}, "
                f"width {self.head_width} a head); fit them"
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads
