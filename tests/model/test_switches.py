"""Each switch does something, and is the plain model where it should be: closed gates, equal experts, wide windows."""

import math
import zlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.errors import ConfigError, UsageError
from mmt_cli.model import kernel_window
from mmt_cli.model.cache import Int8Slots, Slots
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.layers import ACTIVATIONS
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer

MOVED, NOISE = 1e-3, 1e-4
LENGTH = 6
CROSS = {"fusion": {"kind": "cross"}, "text.num_layers": 3}
CONNECTOR = {"connector": {"block": {"width": 32, "num_heads": 2, "mlp_width": 64}}}
PROJECTION = {"connector": {"kind": "projection", "width": 32}}
WINDOW = {"kind": "sliding_window", "image_window": 3, "text_window": 2}
SPLICE = {"fusion": {"kind": "splice"}}
_READER = {"vocab_size": 97, "max_length": 48, "block": {"width": 32, "num_heads": 2, "mlp_width": 48}, "num_layers": 1}
QUESTION = {"prompt_encoder": {"text": _READER, "fusion": {"kind": "cross"}}}

# What a switch is turned on top of, and the switch.
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vision.embedding": ({}, {"vision.embedding": "convolution"}),
    "vision.patch_bias": ({}, {"vision.patch_bias": False}),
    "vision.distillation_token": ({"vision.class_token": True}, {"vision.distillation_token": True}),
    "vision.leaves_class_token": ({"vision.class_token": True}, {"vision.leaves_class_token": False}),
    "vision.embedding_norm": ({}, {"vision.embedding_norm": True}),
    "vision.positions learned_2d": ({}, {"vision.positions": "learned_2d"}),
    "vision.positions sincos_2d": ({"vision.positions": "none"}, {"vision.positions": "sincos_2d"}),
    "vision.rope 1d": ({}, {"vision.block.rope": "1d"}),
    "vision.rope 2d": ({}, {"vision.block.rope": "2d"}),
    "vision.kernel sliding_window": ({}, {"vision.block.kernel": WINDOW}),
    "vision.kernel linformer": ({}, {"vision.block.kernel": {"kind": "linformer", "rank": 4}}),
    "vision.kernel performer": ({}, {"vision.block.kernel": {"kind": "performer", "features": 16}}),
    "vision.merged_tokens": ({}, {"vision.merged_tokens": 4}),
    "connector.reduction pixel_shuffle": (CONNECTOR, {"connector.reduction": "pixel_shuffle"}),
    "connector.reduction average": (CONNECTOR, {"connector.reduction": "average"}),
    "connector.positions learned": (CONNECTOR, {"connector.positions": "learned"}),
    "connector.positions sincos_2d": (CONNECTOR, {"connector.positions": "sincos_2d"}),
    "connector projection": ({}, PROJECTION),
    "connector.hidden_width": (PROJECTION, {"connector.hidden_width": 24}),
    "connector.activation": (PROJECTION | {"connector.hidden_width": 24}, {"connector.activation": "relu"}),
    "connector.bias": (PROJECTION, {"connector.bias": False}),
    "connector.input_norm": (PROJECTION, {"connector.input_norm": True}),
    "connector.output_norm": (PROJECTION, {"connector.output_norm": True}),
    "connector.norm_eps": (PROJECTION | {"connector.output_norm": True}, {"connector.norm_eps": 0.1}),
    "connector.reduction of a projection": (PROJECTION, {"connector.reduction": "pixel_shuffle"}),
    "fusion.visibility causal": ({}, {"fusion.visibility": "causal"}),
    "fusion.order": ({"text.block.kernel": WINDOW}, {"fusion.visibility": "causal", "fusion.order": "text_first"}),
    "fusion.visibility prompt": (SPLICE, {"fusion.visibility": "prompt"}),
    "prompt_encoder": (CROSS, QUESTION),
    "prompt_encoder.fusion": (CROSS | QUESTION, {"prompt_encoder.fusion.kind": "splice"}),
    "prompt_encoder.shares_tokens": (CROSS | QUESTION, {"prompt_encoder.shares_tokens": True}),
    "fusion.kind cross": ({}, {"fusion.kind": "cross"}),
    "fusion.kind gated_cross": (CROSS, {"fusion.kind": "gated_cross"}),
    "fusion.every": (CROSS, {"fusion.every": 2}),
    "fusion.gate tanh, concat": ({}, {"fusion.gate": "tanh"}),
    "fusion.gate dynamic, concat": ({}, {"fusion.gate": "dynamic"}),
    "fusion.gate tanh, cross": (CROSS, {"fusion.gate": "tanh"}),
    "fusion.gate dynamic, cross": (CROSS, {"fusion.gate": "dynamic"}),
    "text.positions": ({}, {"text.positions": "none"}),
    "text.positions sinusoidal": ({"text.positions": "none"}, {"text.positions": "sinusoidal"}),
    "text.position_offset": ({}, {"text.position_offset": 2}),
    "text.position_offset of sines": ({"text.positions": "sinusoidal"}, {"text.position_offset": 2}),
    "text.embedding_scale": ({}, {"text.embedding_scale": 3.0}),
    "text.embedding_norm": ({}, {"text.embedding_norm": True}),
    "text.rope 1d": ({}, {"text.block.rope": "1d"}),
    "text.rope multimodal": ({"text.block.rope": "1d"}, {"text.block.rope": "multimodal"}),
    "text.rope_theta": ({"text.block.rope": "1d"}, {"text.block.rope_theta": 10.0}),
    "text.kernel sliding_window": ({}, {"text.block.kernel": WINDOW}),
    "text.kernel performer": ({}, {"text.block.kernel": {"kind": "performer", "features": 16}}),
    "image_window": ({"text.block.kernel": WINDOW}, {"text.block.kernel.image_window": 5}),
    "text_window": ({"text.block.kernel": WINDOW}, {"text.block.kernel.text_window": 3}),
    "text.cache int8": ({}, {"text.cache": "int8"}),
    "norm post": ({}, {"text.block.norm": "post"}),
    "norm sandwich": ({}, {"text.block.norm": "sandwich"}),
    "norm_kind": ({}, {"text.block.norm_kind": "rmsnorm"}),
    "norm_kind rmsnorm_plus_one": (
        {"text.block.norm_kind": "rmsnorm"},
        {"text.block.norm_kind": "rmsnorm_plus_one"},
    ),
    "norm_eps": ({}, {"text.block.norm_eps": 0.1}),
    "activation relu": ({}, {"text.block.activation": "relu"}),
    "activation gelu_tanh": ({"text.num_layers": 4, "text.block.gated": True}, {"text.block.activation": "gelu_tanh"}),
    "activation quick_gelu": ({}, {"text.block.activation": "quick_gelu"}),
    "activation silu": ({}, {"text.block.activation": "silu"}),
    "gated": ({}, {"text.block.gated": True}),
    "head_dim": ({}, {"text.block.head_dim": 24}),
    "num_kv_heads": ({}, {"text.block.num_kv_heads": 1}),
    "qk_norm": ({}, {"text.block.qk_norm": True}),
    "qk_norm of cross-attention": (CROSS | {"text.block.rope": "1d"}, {"text.block.qk_norm": True}),
    "layer_scale": ({}, {"text.block.layer_scale": 0.1}),
    "qkv_bias": ({}, {"text.block.qkv_bias": False}),
    "out_bias": ({}, {"text.block.out_bias": False}),
    "mlp_bias": ({}, {"text.block.mlp_bias": False}),
    "head own": ({}, {"text.head": "own"}),
    "head_transform": ({}, {"text.head_transform": True}),
    "head_bias": ({}, {"text.head_bias": True}),
    "experts mlp": ({}, {"text.block.experts": "mlp"}),
    "experts attention+mlp": ({"text.block.experts": "mlp"}, {"text.block.experts": "attention+mlp"}),
}


def config_of(tools: ModuleType, *changes: dict[str, Any]) -> ModelConfig:
    settings: dict[str, Any] = {"text.vocab_size": tools.VOCABULARY}
    for change in changes:
        settings |= change
    return preset("tiny", settings)


def model_of(tools: ModuleType, config: ModelConfig) -> Any:
    """A weight of one name has one value, whatever else the model has."""
    model = tools.build_model(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        tensor.data.copy_(tools._strong(name, torch.randn(tensor.shape, generator=generator)))
    return tools.called(model)


def cached_logits(model: Any, tools: ModuleType) -> Tensor:
    """Read with a cache, so that switches of the cache show, too."""
    ids, image = tools.random_ids(2, LENGTH), model.see(tools.random_pixels(model.config, 2))
    _, cache = model.prefill(ids[:, : LENGTH - 2], image, capacity=LENGTH)
    logits: Tensor = model.step(ids[:, LENGTH - 2 :], cache)
    return logits


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_what_the_model_computes(name: str, tools: ModuleType) -> None:
    base, switch = SWITCHES[name]
    logits = [cached_logits(model_of(tools, config_of(tools, *s)), tools) for s in ((base,), (base, switch))]
    assert (logits[0] - logits[1]).abs().amax(dim=-1).min() >= MOVED


def test_activations_are_what_papers_say() -> None:
    """GELU's tanh form: Hendrycks and Gimpel 2016; x times the logistic function of 1.702 x: there, too, and CLIP."""
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    by_hand = {
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "quick_gelu": x / (1 + torch.exp(-1.702 * x)),
        "relu": x.clamp_min(0),
        "silu": x / (1 + torch.exp(-x)),
    }
    assert by_hand.keys() == ACTIVATIONS.keys()
    for name, build in ACTIVATIONS.items():
        torch.testing.assert_close(build()(x), by_hand[name])


def copy_weights(source: MultimodalTransformer, target: MultimodalTransformer, rename: dict[str, str]) -> None:
    """Give each weight of `target` that of `source`, under its name or with parts of the name replaced."""
    given = dict(source.state_dict())
    state = {}
    for name, tensor in target.state_dict().items():
        origin = name
        for ours, theirs in rename.items():
            origin = origin.replace(ours, theirs)
        state[name] = given.get(origin, tensor)
    target.load_state_dict(state)


def same(one: Any, other: Any, tools: ModuleType) -> None:
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(one.config, 2)
    assert (one(ids, pixels) - other(ids, pixels)).abs().max() <= NOISE
    assert (cached_logits(one, tools) - cached_logits(other, tools)).abs().max() <= NOISE


@pytest.mark.parametrize("experts", ["mlp", "attention+mlp"])
@pytest.mark.parametrize("order", ["image_first", "text_first"])
def test_experts_that_are_copies_are_the_dense_block(experts: str, order: str, tools: ModuleType) -> None:
    dense = model_of(tools, config_of(tools, {"fusion.order": order}))
    routed = model_of(tools, config_of(tools, {"fusion.order": order, "text.block.experts": experts}))
    copy_weights(dense, routed, {".image.": ".", ".text.": "."})
    same(dense, routed, tools)
    names = [name for name in routed.state_dict() if ".image." in name]
    assert any(".mlp.inner.image." in name for name in names)
    assert any(".qkv.image." in name for name in names) == (experts == "attention+mlp")
    # Each modality reads its own: what belongs to the image moves through the image alone.
    with torch.no_grad():
        routed.get_parameter("blocks.1.mlp.inner.text.down.bias").add_(torch.randn(32))
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(dense.config, 2)
    assert (dense(ids, pixels) - routed(ids, pixels)).abs().max() >= MOVED


@pytest.mark.parametrize("gate", ["tanh", "dynamic"])
@pytest.mark.parametrize("kind", ["concat", "splice"])
def test_gates_in_one_sequence_start_as_the_model_without_them(kind: str, gate: str, tools: ModuleType) -> None:
    plain = model_of(tools, config_of(tools, {"fusion.kind": kind}))
    gated = model_of(tools, config_of(tools, {"fusion": {"kind": kind, "gate": gate}}))
    close(gated)
    same(plain, gated, tools)


@pytest.mark.parametrize("gate", ["tanh", "dynamic"])
@pytest.mark.parametrize("kind", ["cross", "gated_cross"])
def test_closed_gates_of_cross_attention_leave_the_text_alone(kind: str, gate: str, tools: ModuleType) -> None:
    gated = model_of(tools, config_of(tools, {"fusion": {"kind": kind, "gate": gate}}))
    close(gated)
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(gated.config, 2)
    alone = gated.head(gated.run(gated.fused(ids, None)))
    assert (gated(ids, pixels) - alone).abs().max() <= NOISE


def close(model: MultimodalTransformer) -> None:
    for module in model.modules():
        if hasattr(module, "reset") and hasattr(module, "value"):
            module.reset()


def test_a_dynamic_gate_depends_on_image_text_and_token(tools: ModuleType) -> None:
    model = model_of(tools, config_of(tools, {"fusion.gate": "dynamic"}))
    ids, images = tools.random_ids(1, LENGTH), [model.see(tools.random_pixels(model.config, 1, s)) for s in (1, 2)]
    other = ids.clone()
    other[0, 2] += 1
    gate, seen = model.fusion.gates["text"], []
    gate.register_forward_hook(lambda module, given, _: seen.append(module.value(given[1], given[2])[0, :, 0]))
    for text, image in ((ids, images[0]), (ids, images[1]), (other, images[0])):
        model.fused(text, image)
    assert ((seen[0] - seen[1]).abs() >= MOVED).all(), "another image"
    assert (seen[0][:2] == seen[2][:2]).all(), "text that is still to come"
    assert ((seen[0] - seen[2])[2:].abs() >= MOVED).all(), "another word before"


def test_a_window_over_everything_is_full_attention(tools: ModuleType) -> None:
    wide = {"kind": "sliding_window", "image_window": 7, "text_window": LENGTH}
    same(
        model_of(tools, config_of(tools, {})),
        model_of(tools, config_of(tools, {"text.block.kernel": wide, "vision.block.kernel": wide})),
        tools,
    )


def test_shared_keys_are_the_dense_ones_where_those_are_equal(tools: ModuleType) -> None:
    dense, shared = (model_of(tools, config_of(tools, {"text.block.num_kv_heads": heads})) for heads in (2, 1))
    state = shared.state_dict()
    for name, tensor in dense.state_dict().items():
        if ".qkv." in name and name.startswith("blocks."):
            q, k, v = state[name].split([32, 16, 16])
            tensor.copy_(torch.cat([q, k, k, v, v]))
        else:
            tensor.copy_(state[name])
    same(dense, shared, tools)


def test_a_convolution_of_patches_is_the_linear_map(tools: ModuleType) -> None:
    linear, conv = (model_of(tools, config_of(tools, {"vision.embedding": e})) for e in ("linear", "convolution"))
    conv.vision.embedding.weight.data.copy_(linear.vision.embedding.weight.unflatten(1, (3, 8, 8)))
    same(linear, conv, tools)


def test_pixels_beyond_the_last_whole_patch_go_unseen(tools: ModuleType) -> None:
    whole, cutting = (
        model_of(tools, config_of(tools, {"vision.embedding": embedding, "vision.image_size": side, **cuts}))
        for embedding, side, cuts in (("linear", 32, {}), ("convolution", 37, {"vision.cuts_patches": True}))
    )
    cutting.vision.embedding.weight.data.copy_(whole.vision.embedding.weight.unflatten(1, (3, 8, 8)))
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(cutting.config, 2)
    assert (whole(ids, pixels[:, :, :32, :32]) - cutting(ids, pixels)).abs().max() <= NOISE
    linear = model_of(tools, config_of(tools, {"vision.image_size": 37, "vision.cuts_patches": True}))
    assert (whole(ids, pixels[:, :, :32, :32]) - linear(ids, pixels)).abs().max() <= NOISE
    with pytest.raises(UsageError, match="patch_size 8, 37 x 37"):
        whole(ids, pixels)


def test_a_class_token_that_stays_in_the_tower_is_seen_there_alone(tools: ModuleType) -> None:
    """The rest of the image tokens are those of a model whose text sees it."""
    settings = {"vision.class_token": True, "vision.distillation_token": True}
    leaving, staying = (
        model_of(tools, config_of(tools, settings, {"vision.leaves_class_token": leaves})) for leaves in (True, False)
    )
    image, cells = (model.see(tools.random_pixels(leaving.config, 2)) for model in (leaving, staying))
    assert (image.extra, cells.extra, cells.grid) == (2, 0, (4, 4))
    assert (image.x_BND[:, 2:] - cells.x_BND).abs().max() <= NOISE


def test_a_projection_with_a_norm_is_a_connector_without_blocks(tools: ModuleType) -> None:
    blocks, projection = (
        model_of(tools, config_of(tools, settings))
        for settings in (CONNECTOR, PROJECTION | {"connector.output_norm": True})
    )
    copy_weights(blocks, projection, {"connector.layers.0.": "connector.projection."})
    same(blocks, projection, tools)


def test_a_norm_that_counts_from_one_is_the_other_with_one_added(tools: ModuleType) -> None:
    plain, counting = (
        model_of(tools, config_of(tools, {"text.block.norm_kind": kind})) for kind in ("rmsnorm", "rmsnorm_plus_one")
    )
    for name, tensor in counting.state_dict().items():
        if "norm" in name and not name.startswith("vision."):
            plain.state_dict()[name].copy_(tensor + 1)
    same(plain, counting, tools)


def test_a_scale_of_embeddings_is_in_the_table_as_well(tools: ModuleType) -> None:
    """Positions and image stay as they are; so does a tied head, which is why this one is not."""
    head = {"text.head": "own"}
    for settings in (head, head | SPLICE):
        plain, scaled = (
            model_of(tools, config_of(tools, settings, {"text.embedding_scale": scale})) for scale in (1.0, 3.0)
        )
        plain.text.tokens.weight.data.mul_(3.0)
        same(plain, scaled, tools)


def test_positions_from_an_offset_on_are_later_rows_of_the_table(tools: ModuleType) -> None:
    plain, later = (model_of(tools, config_of(tools, {"text.position_offset": offset})) for offset in (0, 2))
    plain.text.positions.data.copy_(later.text.positions[2:])
    assert len(later.text.positions) == later.config.text.max_length + 2
    same(plain, later, tools)


def test_a_prompt_sees_all_of_itself_and_what_is_written_behind_it_only_what_was(tools: ModuleType) -> None:
    model = tools.build_model(config_of(tools, {"fusion": {"kind": "splice", "visibility": "prompt"}}))
    image, count = model.see(tools.random_pixels(model.config, 2)), model.config.num_image_tokens
    places = torch.full((2, count), model.config.placeholder_id)
    words = tools.random_ids(2, LENGTH)
    prompt = torch.cat([words[:, :1], places, words[:, 1:4]], dim=1)
    before = model.read(prompt, image)
    assert (before - model.read(prompt, model.see(tools.random_pixels(model.config, 2, 1)))).abs().amax(
        -1
    ).min() >= MOVED
    changed = prompt.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 96
    assert (model.read(changed, image) - before).abs().amax(dim=-1).min() >= MOVED, "its last word is seen by all of it"

    def steps(*cuts: int) -> Tensor:
        logits, cache = model.prefill(prompt, image, capacity=prompt.shape[1] + 2)
        assert (logits - before[:, -1]).abs().max() <= NOISE
        for part in torch.split(words[:, 4:], list(cuts), dim=1):
            logits = model.step(part, cache)
            cache.advance(part.shape[1])
        return logits

    assert (steps(1, 1) - steps(2)).abs().max() <= NOISE, "what is written sees what comes later"
    prompt_and_word = torch.cat([prompt, words[:, 4:5]], dim=1)
    assert (model.read(prompt_and_word, image)[:, -2] - before[:, -1]).abs().max() >= MOVED


def test_a_window_over_a_prompt_looks_both_ways(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is cut into chunks, as long texts are, or masked whole."""
    fusion = {"fusion": {"kind": "splice", "visibility": "prompt"}}
    model = model_of(tools, config_of(tools, fusion, {"text.block.kernel": WINDOW, "text.num_layers": 1}))
    ids, pixels = tools.random_ids(2, 12), tools.random_pixels(model.config, 2)
    whole, alone, changed = model(ids, pixels), model.model.read(ids, None), ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 96
    moved_T = (model(changed, pixels) - whole).abs().amax(dim=(0, 2)) >= MOVED
    assert moved_T.nonzero().flatten().tolist() == [5, 6, 7]
    monkeypatch.setattr(kernel_window, "_CHUNK", 1)
    monkeypatch.setattr(kernel_window, "_TILE", 2)
    assert (model(ids, pixels) - whole).abs().max() <= NOISE
    assert (model.model.read(ids, None) - alone).abs().max() <= NOISE


def test_prompts_of_unlike_lengths_are_read_as_each_alone(tools: ModuleType) -> None:
    model = tools.build_model(config_of(tools, {"fusion": {"kind": "splice", "visibility": "prompt"}}))
    image, count = model.see(tools.random_pixels(model.config, 2)), model.config.num_image_tokens
    ids = torch.cat([torch.full((2, count), model.config.placeholder_id), tools.random_ids(2, 5)], dim=1)
    valid_BT = torch.ones_like(ids, dtype=torch.bool)
    valid_BT[1, -2:] = False
    new = tools.random_ids(2, 1, seed=1)
    _, cache = model.prefill(ids, image, valid_BT=valid_BT, capacity=ids.shape[1] + 1)
    together = model.step(new, cache)
    for row, length in enumerate(valid_BT.sum(dim=1).tolist()):
        _, cache = model.prefill(ids[row : row + 1, :length], image[row : row + 1], capacity=length + 1)
        assert (model.step(new[row : row + 1], cache) - together[row]).abs().max() <= NOISE


@pytest.mark.parametrize("fusion", ["cross", "splice"])
def test_a_question_is_read_whole_with_the_image_and_moves_every_word(fusion: str, tools: ModuleType) -> None:
    model = model_of(tools, config_of(tools, CROSS, QUESTION, {"prompt_encoder.fusion.kind": fusion}))
    image = model.model.see(tools.random_pixels(model.config, 2))
    question = model.question(image).expand(2, -1)
    made = model.ask(question, image)
    assert made.x_BND.shape[1] == question.shape[1]
    other = question.clone()
    other[:, -1] = (other[:, -1] + 1) % 96
    moved_BN = (model.ask(other, image).x_BND - made.x_BND).abs().amax(dim=-1)
    assert moved_BN.min() >= MOVED, "a token does not see the question's last word"
    unlike = model.model.see(tools.random_pixels(model.config, 2, seed=1))
    assert (model.ask(question, unlike).x_BND - made.x_BND).abs().amax(dim=-1).min() >= MOVED
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(model.config, 2)
    asked = model.model(ids, pixels, question)
    assert (asked - model.read(ids, made)).abs().max() <= NOISE
    assert (model.model(ids, pixels, other) - asked).abs().amax(dim=-1).min() >= MOVED


@pytest.mark.parametrize("fusion", ["cross", "splice"])
def test_questions_of_unlike_lengths_are_answered_as_each_alone(fusion: str, tools: ModuleType) -> None:
    """Padding is seen neither by the encoder nor by the decoder, cached or not."""
    model = model_of(tools, config_of(tools, CROSS, QUESTION, {"prompt_encoder.fusion.kind": fusion}))
    image = model.model.see(tools.random_pixels(model.config, 2))
    question = model.question(image).expand(2, -1)
    valid_BP = torch.ones_like(question, dtype=torch.bool)
    valid_BP[1, -2:] = False
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(model.config, 2)
    together = model.model(ids, pixels, question, prompt_valid_BP=valid_BP)
    _, cache = model.prefill(ids[:, :-1], model.ask(question, image, valid_BP=valid_BP), capacity=LENGTH)
    assert (model.step(ids[:, -1:], cache) - together[:, -1]).abs().max() <= NOISE
    row_R = torch.tensor([1, 0, 1])
    cache.reorder(row_R)
    assert (model.step(ids[row_R, -1:], cache) - together[row_R, -1]).abs().max() <= NOISE
    for row, length in enumerate(valid_BP.sum(dim=1).tolist()):
        alone = model.model(ids[row : row + 1], pixels[row : row + 1], question[row : row + 1, :length])
        assert (alone[0] - together[row]).abs().max() <= NOISE


def test_a_spliced_image_is_a_concatenated_one_but_for_positions(tools: ModuleType) -> None:
    concat, splice = (
        model_of(tools, config_of(tools, {"fusion": fusion, "text.positions": "none", "text.block.rope": "multimodal"}))
        for fusion in ({"kind": "concat", "visibility": "prefix"}, {"kind": "splice", "visibility": "prefix"})
    )
    same(concat, splice, tools)


def test_an_int8_cache_is_close_and_a_quarter_as_large(tools: ModuleType) -> None:
    """A number is off by 1/254 of its head's largest at most, wild weights' logits by a tenth of their spread."""
    full, int8 = (model_of(tools, config_of(tools, CROSS, {"text.cache": kind})) for kind in ("full", "int8"))
    one, other = cached_logits(full, tools), cached_logits(int8, tools)
    assert 0 < (one - other).abs().max() <= 0.1 * one.std()
    k_BHLE = torch.randn(2, 3, 5, 64)
    slots, small = Slots(k_BHLE, 5), Int8Slots(k_BHLE, 5)
    small.write(k_BHLE, 0)
    bound_BHL1 = k_BHLE.abs().amax(dim=-1, keepdim=True) / 254
    assert ((small.read(5) - k_BHLE).abs() <= 1.01 * bound_BHL1).all()
    full_bytes, small_bytes = (sum(part.nbytes for part in s.parts) for s in (slots, small))
    assert small_bytes == full_bytes * (64 + 4) // (64 * 4)
    small.write(torch.zeros_like(k_BHLE), 0)
    assert (small.read(5) == 0).all()


def test_placeholders_that_do_not_fit_the_image_are_named(tools: ModuleType) -> None:
    model = tools.build_model(config_of(tools, {"fusion": {"kind": "splice"}}))
    image, hole = model.see(tools.random_pixels(model.config, 2)), model.config.placeholder_id
    count = model.config.num_image_tokens
    for row in ([3, *[hole] * (count - 1), 4, 5], [3, *[hole] * (count - 1), 4, hole]):
        good = [3, *[hole] * count, 4]
        with pytest.raises(UsageError, match=rf"row 1: {count} image tokens, {row.count(hole)} placeholders"):
            model.read(torch.tensor([good, row]), image)


def test_padding_of_the_placeholders_id_is_no_placeholder(tools: ModuleType) -> None:
    model = tools.build_model(config_of(tools, {"fusion": {"kind": "splice", "placeholder_id": 0}}))
    image = model.see(tools.random_pixels(model.config, 2))
    row = [3, *[0] * model.config.num_image_tokens, 4]
    ids, valid = torch.tensor([[*row, 5, 6], [*row, 0, 0]]), torch.ones(2, len(row) + 2, dtype=torch.bool)
    valid[1, -2:] = False
    padded = model.read(ids, image, valid_BT=valid)
    assert (padded[1, :-2] - model.read(torch.tensor([row]), image[1:])[0]).abs().max() <= NOISE


@pytest.mark.parametrize(
    "part", [{"positions": "learned"}, {"block": {"kernel": {"kind": "linformer"}}}], ids=["learned", "linformer"]
)
def test_merged_tokens_that_do_not_fit_are_refused(part: dict[str, Any], tools: ModuleType) -> None:
    connector = CONNECTOR["connector"] | part
    connector["block"] = CONNECTOR["connector"]["block"] | part.get("block", {})
    settings = {"vision.merged_tokens": 3, "vision.num_layers": 2, "connector": connector}
    model = tools.build_model(config_of(tools, settings))
    with pytest.raises(UsageError, match=r"images of one size alone .*32 x 32 pixels, 48 x 48"):
        model.see(torch.zeros(1, 3, 48, 48))
    with pytest.raises(UsageError, match=r"merged_tokens 3 .* 2 patches"):
        model.see(torch.zeros(1, 3, 16, 8))


IMPOSSIBLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unlike widths in one sequence": ({"text.block.width": 48}, ["image 32", "text 48"]),
    "unlike widths and a dynamic gate": (
        {"fusion": {"kind": "cross", "gate": "dynamic"}, "text.block.width": 48},
        ["image 32", "text 48"],
    ),
    "unlike widths that are compared": (
        {"fusion.kind": "cross", "text.block.width": 48, "contrastive_width": 8},
        ["image 32", "text 48", "contrastive_width 8"],
    ),
    "a distillation token alone": ({"vision.distillation_token": True}, ["distillation_token true", "class_token"]),
    "a prompt encoder beside one sequence": (QUESTION, ["fusion.kind concat", "prompt_encoder", "cross"]),
    "shared tokens of unlike widths": (
        CROSS | QUESTION | {"prompt_encoder.text.block.width": 48, "prompt_encoder.shares_tokens": True},
        ["prompt_encoder 97 x 48", "text 97 x 32"],
    ),
    "a prompt encoder of unlike widths in one sequence": (
        CROSS | QUESTION | {"prompt_encoder.text.block.width": 48, "prompt_encoder.fusion.kind": "splice"},
        ["image 32", "text 48"],
    ),
    "linformer text": ({"text.block.kernel": {"kind": "linformer"}}, ["text.block.kernel linformer", "causal"]),
    "even window": ({"text.block.kernel": WINDOW | {"image_window": 4}}, ["image_window 4", "3 or 5"]),
    "2d rope for text": ({"text.block.rope": "2d"}, ["text.block.rope 2d", "multimodal"]),
    "multimodal rope for the image": ({"vision.block.rope": "multimodal"}, ["vision.block.rope multimodal", "2d"]),
    "odd heads for rope": ({"text.block.rope": "multimodal", "text.block.num_heads": 8}, ["multimodal", "width 4"]),
    "multimodal rope beside the image": (
        {"fusion.kind": "cross", "text.block.rope": "multimodal"},
        ["fusion.kind cross", "text.block.rope multimodal"],
    ),
    "experts beside the image": (
        {"fusion.kind": "gated_cross", "text.block.experts": "mlp"},
        ["fusion.kind gated_cross", "text.block.experts mlp"],
    ),
    "experts over the image": ({"vision.block.experts": "mlp"}, ["vision.block.experts mlp", "one modality"]),
    "uneven kv heads": ({"text.block.num_heads": 4, "text.block.num_kv_heads": 3}, ["num_kv_heads 3", "num_heads 4"]),
    "too much merging": ({"vision.merged_tokens": 9}, ["merged_tokens 9", "16 patches"]),
    "merging and a window": (
        {"vision.merged_tokens": 2, "vision.block.kernel": WINDOW},
        ["vision.merged_tokens 2", "sliding_window"],
    ),
    "merging and a joint window": (
        {"vision.merged_tokens": 2, "text.block.kernel": WINDOW},
        ["vision.merged_tokens", "text.block.kernel sliding_window"],
    ),
    "merging and pixel shuffle": (
        {"vision.merged_tokens": 2, **CONNECTOR, "connector.reduction": "pixel_shuffle"},
        ["vision.merged_tokens", "connector.reduction pixel_shuffle"],
    ),
    "cells left over": (
        {**CONNECTOR, "connector.reduction": "pixel_shuffle", "connector.reduction_factor": 3},
        ["reduction_factor 3", "4 x 4"],
    ),
    "class token and pixel shuffle": (
        {**CONNECTOR, "vision.class_token": True, "connector.reduction": "average"},
        ["vision.class_token true", "connector.reduction average"],
    ),
    "int8 cache of sums": (
        {"text.block.kernel": {"kind": "performer"}, "text.cache": "int8"},
        ["performer", "text.cache int8"],
    ),
    "int8 cache of nothing": (
        {"fusion.visibility": "bidirectional", "vision.class_token": True, "text.cache": "int8"},
        ["bidirectional", "text.cache int8"],
    ),
    "splice without room": ({"fusion.kind": "splice", "text.max_length": 17}, ["text.max_length 17", "16 image"]),
    "performer and rows that differ": (
        {"fusion": {"kind": "splice", "visibility": "prefix"}, "text.block.kernel": {"kind": "performer"}},
        ["text.block.kernel performer", "fusion.visibility prefix"],
    ),
    "two factors that stay zero": (
        {"fusion": {"kind": "gated_cross"}, "text.block.layer_scale": 0.0},
        ["fusion.gate tanh", "text.block.layer_scale 0.0"],
    ),
    "sines of an odd width": (
        {"vision.positions": "sincos_2d", "vision.block.width": 30, "text.block.width": 30},
        ["vision 30", "sincos_2d"],
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_switches_that_exclude_each_other_are_named(name: str, tools: ModuleType) -> None:
    settings, named = IMPOSSIBLE[name]
    with pytest.raises(ConfigError) as caught:
        config_of(tools, settings)
    assert [part for part in named if part not in str(caught.value)] == []
