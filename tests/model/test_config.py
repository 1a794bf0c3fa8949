"""Configs: what goes out comes back in, and what cannot be built says why, at once."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.errors import ConfigError
from mmt_cli.model.block_config import (
    BlockConfig,
    FullKernelConfig,
    KernelConfig,
    LinformerKernelConfig,
    PerformerKernelConfig,
    SlidingWindowKernelConfig,
)
from mmt_cli.model.config import ModelConfig, PromptEncoderConfig, TextConfig
from mmt_cli.model.fusion_config import ConcatConfig, CrossConfig, GatedCrossConfig
from mmt_cli.model.image_config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig, ProjectionConfig
from mmt_cli.model.presets import PRESETS, changed, preset, with_dropout
from mmt_cli.model.transformer import MultimodalTransformer

KERNELS: list[KernelConfig] = [
    FullKernelConfig(),
    SlidingWindowKernelConfig(image_window=5, text_window=9),
    PerformerKernelConfig(features=3),
]


@st.composite
def blocks(draw: st.DrawFn, width: int | None = None, *, reads_text: bool = False) -> BlockConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    part = 8 * draw(st.integers(1, 9))
    kernels = KERNELS if reads_text else [*KERNELS, LinformerKernelConfig(rank=2)]
    return BlockConfig(
        width=width or heads * part,
        num_heads=1 if width else heads,
        num_kv_heads=draw(st.sampled_from([None, 1])),
        head_dim=draw(st.sampled_from([None, 8, 40])),
        mlp_width=draw(st.integers(1, 500)),
        norm=draw(st.sampled_from(["pre", "post", "sandwich"])),
        norm_kind=draw(st.sampled_from(["layernorm", "rmsnorm", "rmsnorm_plus_one"])),
        norm_eps=draw(st.floats(1e-12, 1)),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])),
        gated=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        layer_scale=draw(st.none() | st.floats(0, 10)),
        rope=draw(st.sampled_from(["none", "1d"] if reads_text else ["none", "1d", "2d"])),
        kernel=draw(st.sampled_from(kernels)),
        dropout=draw(st.floats(0, 0.9) | st.just(0)),
    )


@st.composite
def fusions(draw: st.DrawFn, *, has_class_token: bool) -> ConcatConfig | CrossConfig | GatedCrossConfig:
    visible = ["prefix", "causal", *(["bidirectional"] if has_class_token else [])]
    gates = st.sampled_from(["none", "tanh", "dynamic"])
    concat = st.builds(
        ConcatConfig,
        order=st.sampled_from(["image_first", "text_first"]),
        visibility=st.sampled_from(visible),
        gate=gates,
    )
    cross = st.builds(CrossConfig, every=st.integers(1, 9), gate=gates)
    return draw(concat | cross | st.builds(GatedCrossConfig, every=st.integers(1, 9)))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    text = TextConfig(
        vocab_size=draw(st.integers(1, 4_000_000)),
        max_length=draw(st.integers(1, 2_000)),
        positions=draw(st.sampled_from(["none", "learned", "sinusoidal"])),
        position_offset=draw(st.integers(0, 1_024)),
        embedding_scale=draw(st.floats(1e-3, 1e4)),
        embedding_norm=draw(st.booleans()),
        head_transform=draw(st.booleans()),
        block=draw(blocks(reads_text=True)),
        num_layers=draw(st.integers(1, 512)),
        final_norm=draw(st.booleans()),
        head=draw(st.sampled_from(["tied", "own"])),
        head_bias=draw(st.booleans()),
    )
    connector: ConnectorConfig | ProjectionConfig | None = None
    class_token = draw(st.booleans())
    which = draw(st.sampled_from(["none", "projection", "linear"]))
    if which == "projection":
        connector = ProjectionConfig(
            reduction="none" if class_token else draw(st.sampled_from(["none", "average"])),
            width=text.block.width,
            hidden_width=draw(st.none() | st.integers(1, 99)),
            activation=draw(st.sampled_from(["gelu", "relu"])),
            bias=draw(st.booleans()),
            input_norm=draw(st.booleans()),
            output_norm=draw(st.booleans()),
            norm_eps=draw(st.floats(1e-12, 1)),
        )
    if which == "linear":
        connector = ConnectorConfig(
            reduction="none" if class_token else draw(st.sampled_from(["none", "average"])),
            positions=draw(st.sampled_from(["none", "learned", "learned_2d", "sincos_2d"])),
            block=draw(blocks(text.block.width)),
            num_layers=draw(st.integers(0, 9)),
        )
    vision: PatchTowerConfig | ConvTowerConfig = ConvTowerConfig(image_size=draw(st.integers(32, 2_048)))
    if connector is None or draw(st.booleans()):
        patch = draw(st.integers(1, 64))
        vision = PatchTowerConfig(
            image_size=patch * draw(st.integers(1, 20)),
            patch_size=patch,
            channels=draw(st.integers(1, 64)),
            embedding=draw(st.sampled_from(["linear", "convolution"])),
            positions=draw(st.sampled_from(["none", "learned", "learned_2d", "sincos_2d"])),
            block=draw(blocks(None if connector else text.block.width)),
            num_layers=draw(st.integers(0, 9)),
            patch_bias=draw(st.booleans()),
            cuts_patches=draw(st.booleans()),
            class_token=class_token,
            distillation_token=class_token and draw(st.booleans()),
            embedding_norm=draw(st.booleans()),
            final_norm=draw(st.booleans()),
        )
    fusion = draw(fusions(has_class_token=vision.class_token))
    encoder = None
    if isinstance(fusion, CrossConfig) and fusion.gate != "dynamic" and draw(st.booleans()):
        encoder = PromptEncoderConfig(text=text, fusion=CrossConfig(), shares_tokens=draw(st.booleans()))
    return ModelConfig(
        vision=vision,
        connector=connector,
        prompt_encoder=encoder,
        text=text,
        fusion=fusion,
        contrastive_width=draw(st.none() | st.integers(1, 999)),
    )


@given(config=configs())
def test_a_config_survives_json(config: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


words = st.sampled_from(
    ["kind", "vision", "text", "fusion", "block", "connector", "width", "patches", "cross", "concat"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@given(data=anything)
def test_any_json_is_refused_as_a_config(data: object) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_json(data)


@given(data=st.data())
def test_a_config_changed_anywhere_is_refused_or_built(data: st.DataObject) -> None:
    tree = preset(data.draw(st.sampled_from(sorted(PRESETS)))).to_json()
    node: Any = tree
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[key], dict) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(anything)
    try:
        config = ModelConfig.from_json(tree)
    except ConfigError as error:
        assert len(str(error)) < 500
    else:
        assert ModelConfig.from_json(config.to_json()) == config


HUGE = 10**4_999  # more digits than Python writes out
SIZES = ["text.block.width", "text.vocab_size", "text.num_layers", "vision.image_size", "text.block.mlp_width"]


@pytest.mark.parametrize("place", SIZES)
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (1e9, "1000000000.0"),
        (10**9, "1000000000"),
        (0, "(0,"),
        (-1, "-1"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        ("8", "'8'"),
        (HUGE, "huge int"),
        (10**4_000, "10000"),
        (8.0, "8.0"),
        (True, "True"),
        (None, "None"),
        ([[[]]], "[[[]]]"),
        ({"a": 1}, "'a'"),
        ("x" * 10**6, "'xxx"),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, int) or value < HUGE else "5000-digits",
)
def test_a_bad_size_is_refused_with_its_name_and_value(place: str, value: object, named: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        preset("tiny", {place: value})
    assert time.perf_counter() - started < 1
    assert place.rpartition(".")[2] in str(caught.value)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("text.num_layers", 10**7, ["num_layers", "10000000", "512"]),
        ("text.block.num_heads", 5, ["num_heads 5", "width 32"]),
        ("text.block.dropout", math.nan, ["dropout", "nan"]),
        ("text.block.dropout", 1, ["dropout", "(1,", "0.9"]),
        ("text.block.dropout", 10**400, ["dropout", "10000", "0.9"]),
        ("text.block.norm_eps", -1e-5, ["norm_eps", "-1e-05"]),
        ("text.block.norm", "none", ["norm", "none", "pre", "post", "sandwich"]),
        ("text.block.activation", ["gelu"], ["activation", "['gelu']", "relu"]),
        ("text.final_norm", 1, ["final_norm", "1", "bool"]),
        ("vision.patch_size", 5, ["patch_size 5", "image_size 32"]),
        ("vision.kind", [], ["vision.kind", "[]", "patches"]),
        ("vision.kind", "resnet", ["vision.kind", "resnet", "efficientnet_lite0"]),
        ("fusion.kind", None, ["fusion.kind", "None", "concat", "cross"]),
        ("vision.block.width", 16, ["image 16", "text 32"]),
        ("fusion.visibility", "bidirectional", ["fusion.visibility", "vision.class_token"]),
        ("text", 3, ["text", "TextConfig", "3"]),
        ("text.block", None, ["block", "None"]),
        ("connector", {}, ["connector.block"]),
        ("connector", {"blocks": 1}, ["'blocks'", "connector"]),
    ],
)
def test_a_bad_value_is_refused_with_all_that_matters(place: str, value: object, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        preset("tiny", {place: value})
    assert [name for name in named if name not in str(caught.value)] == []


def _without(tree: dict[str, Any]) -> None:
    del tree["text"]["vocab_size"]


def _with_unknown_key(tree: dict[str, Any]) -> None:
    tree["text"]["x" * 10**6] = 1


def _deep(tree: dict[str, Any]) -> None:
    tree["text"]["vocab_size"] = json.loads("[" * 900 + "]" * 900)


def _deep_objects(tree: dict[str, Any]) -> None:
    tree["vision"] = json.loads('{"block": ' * 900 + "{}" + "}" * 900)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_without, "text.vocab_size"),
        (_with_unknown_key, "'xxx"),
        (_deep, "vocab_size"),
        (_deep_objects, "vision.block"),
    ],
)
def test_a_spoilt_tree_is_refused_by_name(spoil: Callable[[dict[str, Any]], None], named: str) -> None:
    tree = preset("tiny").to_json()
    spoil(tree)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(tree)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300


def test_configs_cannot_be_changed_behind_their_checks() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("tiny").text.block.width = 7  # type: ignore[misc]


def test_the_largest_sizes_take_no_memory_before_there_are_weights() -> None:
    block = {"width": 65_536, "num_heads": 1, "mlp_width": 262_144}
    huge = preset("tiny", {"text.block": block, "vision.block": block, "text.vocab_size": 4_000_000})
    with torch.device("meta"):
        model = MultimodalTransformer(huge)
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**11


def test_sizes_that_follow_from_others() -> None:
    seed, mini = preset("seed"), preset("mini")
    assert seed.vision.num_tokens == 14 * 14 + 1
    assert mini.vision.num_tokens == 7 * 7
    assert (seed.memory_width, mini.memory_width) == (768, mini.text.block.width)
    assert (seed.cacheable, mini.cacheable, preset("tiny").cacheable) == (False, True, True)
    assert mini.text.block.head_width * mini.text.block.num_heads == mini.text.block.width


def test_settings_change_what_they_name_and_nothing_else() -> None:
    tiny = preset("tiny")
    config = changed(tiny, {"text.num_layers": 5, "fusion.order": "text_first"})
    assert config.text == dataclasses.replace(tiny.text, num_layers=5)
    assert config.fusion == ConcatConfig(order="text_first")
    assert config.vision == tiny.vision
    assert preset("tiny") == tiny


@pytest.mark.parametrize(
    "name", ["text.layers", "text.vocab_size.x", "text.head.x", "", ".", "connector.num_layers", "x" * 10**6]
)
def test_a_setting_that_does_not_exist_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        preset("tiny", {name: 1})
    assert len(str(caught.value)) < 300


def test_dropout_is_set_in_every_block() -> None:
    config = with_dropout(preset("mini"), 0.4)
    assert config.connector is not None
    assert (config.text.block.dropout, config.connector.block.dropout) == (0.4, 0.4)
    assert with_dropout(config, 0.2) == preset("mini")
