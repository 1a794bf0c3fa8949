"""Any config that can be built makes a model that runs: whatever switches meet, at sizes drawn at random.

What no test of one switch sees: pairs and triples of them. B rows, T text tokens.
"""

import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from mmt_cli.errors import ConfigError, UsageError
from mmt_cli.model import kernel_performer, kernel_window
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.transformer import MultimodalTransformer

LENGTH = 8
NOISE = 2e-4
INT8_NOISE = 0.5  # of the spread of the logits, which weights as strong as these blow small errors up to

KERNELS: dict[str, list[dict[str, Any]]] = {
    "full": [{"kind": "full"}],
    "sliding_window": [{"kind": "sliding_window", "image_window": i, "text_window": t} for i in (1, 3) for t in (1, 3)],
    "linformer": [{"kind": "linformer", "rank": 3}],
    "performer": [{"kind": "performer", "features": 8}],
}
POSITIONS = ["none", "learned", "learned_2d", "sincos_2d"]
BOOLEAN = st.booleans()


def chosen(*options: Any) -> Any:
    return st.sampled_from(options)


def blocks(width: Any, kernels: list[str], ropes: list[str], **more: Any) -> Any:
    return st.fixed_dictionaries(
        {
            "width": width,
            "num_heads": chosen(1, 2),
            "mlp_width": chosen(8, 24),
            "norm": chosen("pre", "post", "sandwich"),
            "norm_kind": chosen("layernorm", "rmsnorm", "rmsnorm_plus_one"),
            "activation": chosen("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
            "gated": BOOLEAN,
            "qkv_bias": BOOLEAN,
            "out_bias": BOOLEAN,
            "mlp_bias": BOOLEAN,
            "qk_norm": BOOLEAN,
            "num_kv_heads": chosen(None, 1),
            "head_dim": chosen(None, None, 8, 24),
            "layer_scale": chosen(None, 0.5),
            "rope": chosen(*ropes),
            "kernel": chosen(*kernels).flatmap(lambda kind: chosen(*KERNELS[kind])),
            **more,
        }
    )


WIDTHS = chosen(16, 32)
IMAGE_BLOCKS = blocks(WIDTHS, list(KERNELS), ["none", "1d", "2d"])
TEXT_BLOCKS = blocks(
    WIDTHS,
    ["full", "sliding_window", "performer"],
    ["none", "1d", "multimodal"],
    experts=chosen("none", "mlp", "attention+mlp"),
)
TOWERS = st.fixed_dictionaries(
    {
        "kind": st.just("patches"),
        "image_size": chosen(8, 16, 24),
        "patch_size": st.just(4),
        "channels": chosen(1, 3),
        "embedding": chosen("linear", "convolution"),
        "positions": chosen(*POSITIONS),
        "block": IMAGE_BLOCKS,
        "num_layers": chosen(0, 1, 2),
        "merged_tokens": chosen(0, 0, 1),
        "patch_bias": BOOLEAN,
        "class_token": BOOLEAN,
        "distillation_token": BOOLEAN,
        "leaves_class_token": BOOLEAN,
        "embedding_norm": BOOLEAN,
        "final_norm": BOOLEAN,
    }
)
PROJECTIONS = st.fixed_dictionaries(
    {
        "kind": st.just("projection"),
        "reduction": chosen("none", "pixel_shuffle", "average"),
        "reduction_factor": chosen(1, 2, 3),
        "width": WIDTHS,
        "hidden_width": chosen(None, 24),
        "activation": chosen("gelu", "relu"),
        "bias": BOOLEAN,
        "input_norm": BOOLEAN,
        "output_norm": BOOLEAN,
    }
)
CONNECTORS = (
    st.none()
    | PROJECTIONS
    | st.fixed_dictionaries(
        {
            "reduction": chosen("none", "pixel_shuffle", "average"),
            "reduction_factor": chosen(1, 2, 3),
            "positions": chosen(*POSITIONS),
            "block": IMAGE_BLOCKS,
            "num_layers": chosen(0, 1),
        }
    )
)
GATES = chosen("none", "tanh", "dynamic")
FUSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("concat"),
            "order": chosen("image_first", "text_first"),
            "visibility": chosen("prefix", "causal", "bidirectional"),
            "gate": GATES,
        }
    ),
    st.fixed_dictionaries({"kind": st.just("splice"), "visibility": chosen("prefix", "causal"), "gate": GATES}),
    st.fixed_dictionaries({"kind": st.just("cross"), "every": chosen(1, 2), "gate": GATES}),
    st.fixed_dictionaries({"kind": st.just("gated_cross"), "every": chosen(1, 2), "gate": chosen("tanh", "dynamic")}),
)


@st.composite
def configs(draw: Any) -> ModelConfig:
    """Return a config that can be built; what cannot is drawn again."""
    tower, connector, fusion, block = draw(TOWERS), draw(CONNECTORS), draw(FUSIONS), draw(TEXT_BLOCKS)
    # The commonest misfits are mended: nearly all draws would be refused.
    if not fusion["kind"].endswith("cross") or fusion["gate"] == "dynamic":
        last = connector or tower
        last.get("block", last)["width"] = block["width"]
    if fusion["kind"].endswith("cross"):
        block["experts"], block["rope"] = "none", "1d" if block["rope"] == "multimodal" else block["rope"]
    if fusion.get("visibility") == "bidirectional":
        tower["class_token"] = tower["leaves_class_token"] = True
    tower["distillation_token"] &= tower["class_token"]
    if connector is not None and tower["class_token"] and tower["leaves_class_token"]:
        connector["reduction"] = "none"
    if tower["merged_tokens"]:
        tower["block"] |= {"kernel": {"kind": "full"}, "rope": "none"}
    text = {
        "vocab_size": 97,
        "max_length": 64,
        "positions": draw(chosen("none", "learned", "sinusoidal")),
        "position_offset": draw(chosen(0, 2)),
        "embedding_scale": draw(chosen(1.0, 2.5)),
        "embedding_norm": draw(BOOLEAN),
        "block": block,
        "num_layers": draw(chosen(1, 2)),
        "cache": draw(chosen("full", "full", "int8")),
        "final_norm": draw(BOOLEAN),
        "head": draw(chosen("tied", "own")),
        "head_bias": draw(BOOLEAN),
        "head_transform": draw(BOOLEAN),
    }
    try:
        return ModelConfig.from_json({"vision": tower, "connector": connector, "text": text, "fusion": fusion})
    except ConfigError:
        return hypothesis.reject()


fuzzed = hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow]
)


@pytest.fixture(autouse=True, scope="module")
def _small_cuts() -> Iterator[None]:
    """Let small sequences take the ways of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_window, "_TILE", 2)
        patch.setattr(kernel_window, "_CHUNK", 1)
        patch.setattr(kernel_performer, "_CHUNK", 3)
        yield


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@fuzzed
@hypothesis.given(config=configs())
def test_rows_padding_and_caches_change_no_logit(config: ModelConfig, tools: ModuleType) -> None:
    model = tools.callable_model(config)
    ids, image = tools.random_ids(3, LENGTH), model.see(tools.random_pixels(config, 3))
    whole = model.read(ids, image)
    assert whole.isfinite().all()
    lengths = (LENGTH, 1, 4)
    valid_BT = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    padded = model.read(ids, image, valid_BT=valid_BT)
    for row, length in enumerate(lengths):
        alone = model.read(ids[row : row + 1, :length], image[row : row + 1])[0]
        assert off(padded[row, : len(alone)], alone) <= NOISE
    if not config.cacheable:
        return
    later = ids.clone()
    later[:, 3:] = (later[:, 3:] + 1) % (tools.VOCABULARY - 1)
    assert off(model.read(later, image)[:, :3], whole[:, :3]) <= NOISE
    bound = NOISE if config.text.cache == "full" else INT8_NOISE * float(whole.std())
    logits_BV, cache = model.prefill(ids[:, :1], image, capacity=LENGTH)
    assert off(logits_BV, whole[:, 0]) <= bound
    for start, end in ((1, 2), (2, 5), (5, LENGTH)):
        logits_BV = model.step(ids[:, start:end], cache)
        cache.advance(end - start)
        assert off(logits_BV, whole[:, end - 1]) <= bound


@fuzzed
@hypothesis.given(config=configs())
def test_text_is_read_without_an_image_and_with_all_of_it_in_sight(config: ModelConfig, tools: ModuleType) -> None:
    """As pretraining on sentences, contrastive and masked training ask for it."""
    model = tools.build_model(config)
    ids = tools.random_ids(2, LENGTH)
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % (tools.VOCABULARY - 1)
    valid_BT = torch.arange(LENGTH) < torch.tensor([[LENGTH], [3]])
    whole, changed, padded = (
        model.run(model.fused(words, None, valid).bidirectional())
        for words, valid in ((ids, None), (later, None), (ids, valid_BT))
    )
    assert off(model.run(model.fused(ids[1:, :3], None).bidirectional()), padded[1:, :3]) <= NOISE
    window = getattr(config.text.block.kernel, "text_window", LENGTH)
    if window > 1:
        near = slice(LENGTH - window, LENGTH)
        assert ((whole - changed)[:, near].abs().amax(dim=-1) > 0).all()
    if config.cacheable:
        alone = model.run(model.fused(ids, None))
        assert off(model.run(model.fused(later, None))[:, :-1], alone[:, :-1]) <= NOISE


@fuzzed
@hypothesis.given(config=configs(), grid=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_images_of_any_grid_are_read_or_refused_in_words(
    config: ModelConfig, grid: tuple[int, int], tools: ModuleType
) -> None:
    model = tools.build_model(config)
    pixels = torch.randn(2, config.vision.channels, 4 * grid[0], 4 * grid[1], generator=torch.Generator())
    try:
        image = model.see(pixels)
    except (UsageError, ConfigError):
        assert grid != config.vision.grid
        return
    ids = tools.random_ids(2, 3)
    if config.placeholder_id is not None:
        places = torch.full((2, image.x_BND.shape[1]), config.placeholder_id)
        hypothesis.assume(places.shape[1] + 3 <= config.text.max_length)
        ids = torch.cat([ids[:, :1], places, ids[:, 1:]], dim=1)
    together = model.read(ids, image)
    assert together.isfinite().all()
    assert off(model.read(ids[1:], model.see(pixels[1:])), together[1:]) <= NOISE


@fuzzed
@hypothesis.given(config=configs(), dtype=chosen(torch.bfloat16, torch.float16))
def test_half_precision_runs_and_gives_float32_logits(
    config: ModelConfig, dtype: torch.dtype, tools: ModuleType
) -> None:
    model = tools.called(tools.build_model(config).to(dtype))
    ids, image = tools.random_ids(2, LENGTH), model.see(tools.random_pixels(config, 2).to(dtype))
    assert image.x_BND.dtype == dtype
    logits = [model.read(ids, image)]
    if config.cacheable:
        first, cache = model.prefill(ids[:, :3], image, capacity=LENGTH)
        logits += [first, model.step(ids[:, 3:], cache)]
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in logits)


@pytest.mark.filterwarnings("error:Mismatch dtype")  # a norm without its fast kernel
@fuzzed
@hypothesis.given(config=configs(), autocast=BOOLEAN)
def test_every_weight_learns(config: ModelConfig, autocast: bool, tools: ModuleType) -> None:
    model = tools.build_model(config).train().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = tools.called(model)(tools.random_ids(2, LENGTH), tools.random_pixels(config, 2))
    logits.logsumexp(dim=-1).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@fuzzed
@hypothesis.given(config=configs())
def test_a_model_can_be_built_without_memory_copied_and_filled(config: ModelConfig, tools: ModuleType) -> None:
    assert ModelConfig.from_json(config.to_json()) == config
    model = tools.build_model(config)
    with torch.device("meta"):
        empty = MultimodalTransformer(config)
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (model, empty)]
    assert shapes[0] == shapes[1]
    filled = copy.deepcopy(empty).to_empty(device="cpu").eval().requires_grad_(False)
    filled.load_state_dict(model.state_dict())
    ids, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(config, 2)
    assert torch.equal(tools.called(filled)(ids, pixels), tools.called(copy.deepcopy(model))(ids, pixels))
