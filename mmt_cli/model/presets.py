"""Named configurations. `seed` and `seed-prefix` keep the names of the listing's arguments."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mmt_cli.errors import ConfigError, UsageError, shown
from mmt_cli.model.block_config import (
    BlockConfig,
    FullKernelConfig,
    KernelConfig,
    LinformerKernelConfig,
    PerformerKernelConfig,
    SlidingWindowKernelConfig,
)
from mmt_cli.model.config import ModelConfig, TextConfig
from mmt_cli.model.fusion_config import ConcatConfig, CrossConfig, GatedCrossConfig
from mmt_cli.model.image_config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig
from mmt_cli.model.presets_hf import blip_base, git_base, smolvlm_256m, vit_gpt2

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


@functools.wraps(seed)
def seed_prefix(**settings: Any) -> ModelConfig:
    """The listing's sizes with a prefix mask: it reads out at every word, so it trains on every word."""
    return dataclasses.replace(seed(**settings), fusion=ConcatConfig(order="text_first", visibility="prefix"))


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
    return _hybrid(CrossConfig())


def modern() -> ModelConfig:
    """The decoder of today: RMSNorm before each part, SwiGLU, rotary positions, grouped queries, no biases."""
    block = BlockConfig(
        width=384,
        num_heads=6,
        num_kv_heads=2,
        mlp_width=1_024,
        norm_kind="rmsnorm",
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        rope="1d",
        dropout=0.2,
    )
    return _hybrid(ConcatConfig(), text_block=block, text_positions="none")


def cross() -> ModelConfig:
    """A vision transformer and a decoder that attends to its patches, all to be trained from the start."""
    return _patches(FullKernelConfig())


def flamingo() -> ModelConfig:
    """Gated cross-attention before every other block of the decoder."""
    return _hybrid(GatedCrossConfig(every=2))


def experts() -> ModelConfig:
    """One sequence, attended jointly, with projections and MLPs of its own for each modality."""
    return _hybrid(ConcatConfig(), text_block=dataclasses.replace(_BLOCK, experts="attention+mlp"))


def dynamic() -> ModelConfig:
    """One sequence whose tokens pass gates that are computed from what image and text hold."""
    return _hybrid(ConcatConfig(gate="dynamic"))


def window() -> ModelConfig:
    """`cross` with patches half as large, which attend to the 7 x 7 around them, and words to the last 32."""
    return _patches(SlidingWindowKernelConfig(), patch_size=8, text_kernel=SlidingWindowKernelConfig())


def linformer() -> ModelConfig:
    """`cross` with patches half as large, whose keys are mixed down to 64."""
    return _patches(LinformerKernelConfig(), patch_size=8)


def performer() -> ModelConfig:
    """`cross` with patches half as large, attention estimated by random features in tower and decoder."""
    return _patches(PerformerKernelConfig(), patch_size=8, text_kernel=PerformerKernelConfig())


_BLOCK = BlockConfig(width=384, num_heads=6, mlp_width=1_536, dropout=0.2)


def _hybrid(
    fusion: ConcatConfig | CrossConfig | GatedCrossConfig,
    *,
    text_block: BlockConfig = _BLOCK,
    text_positions: Literal["none", "learned"] = "learned",
) -> ModelConfig:
    """EfficientNet-Lite0, one block over its cells, and a decoder of four blocks."""
    return ModelConfig(
        vision=ConvTowerConfig(),
        connector=ConnectorConfig(block=_BLOCK, num_layers=1, positions="learned"),
        text=TextConfig(vocab_size=4_000, max_length=64, positions=text_positions, block=text_block, num_layers=4),
        fusion=fusion,
    )


def _patches(kernel: KernelConfig, *, patch_size: int = 16, text_kernel: KernelConfig | None = None) -> ModelConfig:
    """A vision transformer of six blocks and a decoder of four, which attends to it."""
    block = BlockConfig(width=256, num_heads=4, mlp_width=1_024, dropout=0.1)
    tower = dataclasses.replace(block, kernel=kernel)
    text = dataclasses.replace(block, kernel=text_kernel or FullKernelConfig())
    return ModelConfig(
        vision=PatchTowerConfig(patch_size=patch_size, block=tower, num_layers=6, final_norm=True),
        text=TextConfig(vocab_size=4_000, max_length=64, block=text, num_layers=4),
        fusion=CrossConfig(),
    )


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "seed": seed,
    "seed-prefix": seed_prefix,
    "tiny": tiny,
    "mini": mini,
    "modern": modern,
    "cross": cross,
    "flamingo": flamingo,
    "experts": experts,
    "dynamic": dynamic,
    "window": window,
    "linformer": linformer,
    "performer": performer,
    "git-base": git_base,
    "blip-base": blip_base,
    "vit-gpt2": vit_gpt2,
    "smolvlm-256m": smolvlm_256m,
}


def referenced_preset(reference: str, settings: Mapping[str, Any] | None = None) -> ModelConfig | None:
    """Return the preset of a model reference such as `preset:seed`, with `settings` changed as in `preset`.

    Returns:
        None for a reference of another kind.

    Raises:
        UsageError: there is no preset of this name, settings that do not fit, or settings for no preset.
    """
    kind, colon, name = reference.partition(":")
    if colon and kind == "preset":
        return preset(name, settings)
    if settings:
        first = next(iter(settings))
        raise UsageError(f"a trained model keeps its config (--set {first}, model {shown(reference)}); use preset:NAME")
    return None


def preset(name: str, settings: Mapping[str, Any] | None = None) -> ModelConfig:
    """Return the preset `name` with `settings` changed.

    Args:
        name: a key of PRESETS.
        settings: dotted config keys such as `text.num_layers`; for `seed` and `seed-prefix` the listing's argument
            names.

    Raises:
        UsageError: unknown preset, unknown setting, or values that do not fit each other.
    """
    settings = dict(settings or {})
    if name not in PRESETS:
        raise UsageError(f"unknown preset ({shown(name)}, known: {', '.join(PRESETS)}); choose one of them")
    known = inspect.signature(PRESETS[name]).parameters
    if not known:
        return changed(PRESETS[name](), settings)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"unknown setting ({shown(unknown[0])}, known for {name}: {', '.join(known)}); rename it")
    return PRESETS[name](**settings)


def changed(config: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """Return the config with dotted keys set to new values, in their order.

    A new `kind`, or a whole object, takes the defaults for what is not set after it.

    Raises:
        ConfigError: a key does not exist, or the result cannot be built.
    """
    tree = config.to_json()
    opened: list[Any] = []  # objects of a new kind, which name only what is no default
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        node: Any = tree
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or (last not in node and not any(node is new for new in opened)):
            known = ", ".join(node if isinstance(node, dict) else tree)
            raise ConfigError(f"unknown setting ({shown(dotted)}, known here: {known}); rename it")
        if last == "kind" and node[last] != value:
            node.clear()
            opened.append(node)
        node[last] = copy.deepcopy(value)
        opened += [node[last]] if isinstance(value, dict) else []
    return ModelConfig.from_json(tree)


def with_dropout(config: ModelConfig, dropout: float) -> ModelConfig:
    """Return the config with one dropout rate in every block."""

    def replaced(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: dropout if key == "dropout" else replaced(value) for key, value in node.items()}

    return ModelConfig.from_json(replaced(config.to_json()))
