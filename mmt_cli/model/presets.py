"""Named configurations. `seed` keeps the names of the listing's arguments."""

from collections.abc import Callable, Mapping
from typing import Any

from mmt_cli.errors import ConfigError, UsageError, shown
from mmt_cli.model.config import (
    BlockConfig,
    ConcatConfig,
    ConnectorConfig,
    ConvTowerConfig,
    CrossConfig,
    ModelConfig,
    PatchTowerConfig,
    TextConfig,
)

SEED_MAX_LENGTH = 512  # the listing's table of text positions has this many rows


def seed(
    *,
    vocab_size: int = 30_522,
    img_size: int = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    d_model: int = 768,
    num_heads: int = 12,
    num_layers: int = 6,
    mlp_dim: int = 3_072,
    dropout_rate: float = 0.1,
) -> ModelConfig:
    """The original listing, mended: text and patches in one bidirectional sequence, read at the class token."""
    block = BlockConfig(
        width=d_model, num_heads=num_heads, mlp_width=mlp_dim, norm="post", activation="relu", dropout=dropout_rate
    )
    return ModelConfig(
        vision=PatchTowerConfig(
            image_size=img_size,
            patch_size=patch_size,
            channels=in_channels,
            block=block,
            num_layers=0,
            class_token=True,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            max_length=SEED_MAX_LENGTH,
            block=block,
            num_layers=num_layers,
            head="own",
            head_bias=True,
        ),
        fusion=ConcatConfig(order="text_first", visibility="bidirectional"),
    )


def tiny() -> ModelConfig:
    """For tests: a step of training takes milliseconds."""
    block = BlockConfig(width=32, num_heads=2, mlp_width=64)
    return ModelConfig(
        vision=PatchTowerConfig(image_size=32, patch_size=8, block=block, num_layers=1, final_norm=True),
        text=TextConfig(vocab_size=300, max_length=48, block=block, num_layers=2),
        fusion=ConcatConfig(),
    )


def mini() -> ModelConfig:
    """What ships: EfficientNet-Lite0, one block over its 7 x 7 cells, and a decoder that attends to them."""
    block = BlockConfig(width=384, num_heads=6, mlp_width=1_536, dropout=0.2)
    return ModelConfig(
        vision=ConvTowerConfig(),
        connector=ConnectorConfig(block=block, num_layers=1, positions=True),
        text=TextConfig(vocab_size=4_000, max_length=64, block=block, num_layers=4),
        fusion=CrossConfig(),
    )


PRESETS: dict[str, Callable[..., ModelConfig]] = {"seed": seed, "tiny": tiny, "mini": mini}


def referenced_preset(reference: str) -> ModelConfig | None:
    """Return the preset of a model reference such as `preset:seed`, None for any other reference.

    Raises:
        UsageError: there is no preset of this name.
    """
    kind, colon, name = reference.partition(":")
    return preset(name) if colon and kind == "preset" else None


def preset(name: str, settings: Mapping[str, Any] | None = None) -> ModelConfig:
    """Return the preset `name` with `settings` changed.

    Args:
        name: a key of PRESETS.
        settings: dotted config keys such as `text.num_layers`; for `seed` the listing's argument names.

    Raises:
        UsageError: unknown preset, unknown setting, or values that do not fit each other.
    """
    settings = dict(settings or {})
    if name not in PRESETS:
        raise UsageError(f"unknown preset ({shown(name)}, known: {', '.join(PRESETS)}); choose one of them")
    if name == "seed":
        known = seed.__kwdefaults__ or {}
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(f"unknown setting ({shown(unknown[0])}, known for seed: {', '.join(known)}); rename it")
        return seed(**settings)
    return changed(PRESETS[name](), settings)


def changed(config: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """Return the config with dotted keys set to new values.

    Raises:
        ConfigError: a key does not exist, or the result cannot be built.
    """
    tree = config.to_json()
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        node: Any = tree
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            known = ", ".join(node if isinstance(node, dict) else tree)
            raise ConfigError(f"unknown setting ({shown(dotted)}, known here: {known}); rename it")
        node[last] = value
    return ModelConfig.from_json(tree)


def with_dropout(config: ModelConfig, dropout: float) -> ModelConfig:
    """Return the config with one dropout rate in every block."""

    def replaced(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: dropout if key == "dropout" else replaced(value) for key, value in node.items()}

    return ModelConfig.from_json(replaced(config.to_json()))
