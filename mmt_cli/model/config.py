"""The model's configuration: frozen nested dataclasses, checked when built, JSON in and out.

A size out of bounds, an unknown key or an impossible pair raises `ConfigError`, naming both values.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from mmt_cli.errors import ConfigError, shown

T = TypeVar("T")


def _bounded(low: float, high: float, default: Any = dataclasses.MISSING) -> Any:
    """A number field that must lie in [low, high]."""
    return field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base: type and bound checks at construction, JSON in and out."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            _check_type(f"{type(self).__name__}.{item.name}", value, hints[item.name])
            low, high = item.metadata.get("bounds", (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise ConfigError(f"{item.name} is out of bounds ({shown(value)}, allowed {low} to {high}); change it")
        self.check()

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""

    def to_json(self) -> dict[str, Any]:
        """Return the whole tree as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build the tree from JSON values.

        Raises:
            ConfigError: unknown or missing keys, wrong types, sizes out of bounds, impossible pairs.
        """
        return _build(cls, data, "config")


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """One transformer block: self-attention, then cross-attention where there is a memory, then the MLP."""

    width: int = _bounded(1, 65_536)
    num_heads: int = _bounded(1, 1_024)
    mlp_width: int = _bounded(1, 262_144)
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = _bounded(0.0, 1.0, 1e-5)
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = _bounded(0.0, 0.9, 0.0)

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        if self.width % self.num_heads:
            raise ConfigError(
                f"heads do not divide the width (num_heads {self.num_heads}, width {self.width}); fit them"
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True)
class PatchTowerConfig(Config):
    """Image cut into square patches, one linear map, learned positions, `num_layers` blocks (ViT)."""

    kind: Literal["patches"] = "patches"
    image_size: int = _bounded(1, 8_192, 224)
    patch_size: int = _bounded(1, 8_192, 16)
    channels: int = _bounded(1, 64, 3)
    block: BlockConfig
    num_layers: int = _bounded(0, 512)
    class_token: bool = False
    final_norm: bool = False

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"patches do not tile the image (patch_size {self.patch_size}, image_size {self.image_size}); fit them"
            )

    @property
    def width(self) -> int:
        """Width of one image token."""
        return self.block.width

    @property
    def num_tokens(self) -> int:
        """Image tokens: the patches, and the class token before them where there is one."""
        return (self.image_size // self.patch_size) ** 2 + self.class_token


@dataclass(frozen=True, kw_only=True)
class ConvTowerConfig(Config):
    """EfficientNet-Lite0 without its classifier; the last feature map's cells are the image tokens."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: int = _bounded(32, 2_048, 224)

    @property
    def channels(self) -> int:
        """Colour channels of the input."""
        return 3

    @property
    def width(self) -> int:
        """Width of one image token."""
        return 1_280

    @property
    def num_tokens(self) -> int:
        """Cells of the feature map, whose sides are a 32nd of the image's, rounded up."""
        return math.ceil(self.image_size / 32) ** 2


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig(Config):
    """From the tower's tokens to the text's width: a linear map, `num_layers` blocks over the image, a norm."""

    kind: Literal["linear"] = "linear"
    block: BlockConfig
    num_layers: int = _bounded(0, 512, 0)
    positions: bool = False  # learned ones, for towers whose tokens carry none


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Token embedding, learned positions, the joint or decoding blocks, and the vocabulary head."""

    vocab_size: int = _bounded(1, 4_000_000)
    max_length: int = _bounded(1, 1_048_576)
    block: BlockConfig
    num_layers: int = _bounded(1, 512)
    final_norm: bool = True
    head: Literal["tied", "own"] = "tied"
    head_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(Config):
    """Image and text tokens in one sequence, attended jointly.

    `prefix`: the image sees itself, the text sees the image and the text before it; one readout per text token.
    `bidirectional`: everything sees everything; one readout, at the image's class token, for the next word.
    """

    kind: Literal["concat"] = "concat"
    order: Literal["image_first", "text_first"] = "image_first"
    visibility: Literal["prefix", "bidirectional"] = "prefix"


@dataclass(frozen=True, kw_only=True)
class CrossConfig(Config):
    """Causal text that attends to the image by cross-attention in every block."""

    kind: Literal["cross"] = "cross"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The whole model: vision tower → connector → fusion with text → blocks → logits."""

    vision: PatchTowerConfig | ConvTowerConfig
    connector: ConnectorConfig | None = None
    text: TextConfig
    fusion: ConcatConfig | CrossConfig

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        image, text = self.memory_width, self.text.block.width
        if image != text:
            raise ConfigError(
                f"image and text widths do not meet (image {image}, text {text}); make them equal or add a connector"
            )
        if not self.cacheable and not getattr(self.vision, "class_token", False):
            raise ConfigError(
                "bidirectional fusion reads at the class token (fusion.visibility bidirectional, "
                "vision.class_token false); set vision.class_token or fusion.visibility prefix"
            )

    @property
    def memory_width(self) -> int:
        """Width of the image tokens that reach the fusion."""
        return self.vision.width if self.connector is None else self.connector.block.width

    @property
    def cacheable(self) -> bool:
        """Whether earlier tokens' keys and values stay valid when a token is added."""
        return not (isinstance(self.fusion, ConcatConfig) and self.fusion.visibility == "bidirectional")


def _check_type(name: str, value: object, hint: Any) -> None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            fits = isinstance(value, str) and value in typing.get_args(option)
        elif option is float:
            # An int too large for a float is left to the bounds.
            fits = type(value) is int or (type(value) is float and math.isfinite(value))
        else:
            fits = type(value) is option
        if fits:
            return
    allowed = " or ".join(" | ".join(typing.get_args(o)) or getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{name} has the wrong value (found {shown(value)}, expected {allowed}); change it")


def _build(cls: type[T], data: object, path: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} is no object (found {type(data).__name__}, expected keys of {cls.__name__}); mend it"
        )
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"unknown key ({shown(unknown[0])} in {path}, known: {', '.join(fields)}); rename it")
    values = {key: _value(value, hints[key], f"{path}.{key}") for key, value in data.items()}
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"a key is missing ({path}.{missing[0]}, present: {', '.join(values) or 'none'}); add it")
    return typing.cast("Callable[..., T]", cls)(**values)


def _value(value: object, hint: Any, path: str) -> object:
    """Turn a JSON object into the dataclass that `hint` names; a union chooses by its `kind`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    configs = [o for o in options if isinstance(o, type) and issubclass(o, Config)]
    if not configs or not isinstance(value, dict):
        return value
    if len(configs) == 1:
        return _build(configs[0], value, path)
    kinds = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in configs}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"unknown kind ({path}.kind {shown(kind)}, known: {', '.join(kinds)}); choose one of them")
    return _build(kinds[kind], value, path)
