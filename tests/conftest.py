"""Every preset at a size for tests, with weights so strong that a mistake anywhere moves the logits.

Freshly initialised models are nearly blind: a lost mask, norm or bias changes their logits by less than noise.
"""

import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores leave each one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.presets import PRESETS, preset
from mmt_cli.model.transformer import MultimodalTransformer

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")

VOCABULARY = 97
_SMALL_BLOCK = {"width": 48, "num_heads": 3, "mlp_width": 80, "norm_eps": 0.02}

# Settings that make a preset small; one that has none is tested as it is.
SMALL: dict[str, dict[str, Any]] = {
    "seed": {
        "vocab_size": VOCABULARY,
        "img_size": 32,
        "patch_size": 8,
        "d_model": 40,
        "num_heads": 4,
        "num_layers": 3,
        "mlp_dim": 72,
    },
    "tiny": {"text.vocab_size": VOCABULARY, "text.num_layers": 3},
    **{
        name: {
            "vision.image_size": 64,
            "text.vocab_size": VOCABULARY,
            "text.num_layers": 3,
            **{f"{part}.block.{key}": value for part in ("text", "connector") for key, value in _SMALL_BLOCK.items()},
        }
        for name in ("mini", "modern", "flamingo", "experts", "dynamic")
    },
    **{
        name: {
            "vision.image_size": 32,
            "vision.patch_size": 8,
            "vision.num_layers": 2,
            "text.vocab_size": VOCABULARY,
            "text.num_layers": 3,
            **{f"{part}.block.{key}": value for part in ("text", "vision") for key, value in _SMALL_BLOCK.items()},
        }
        for name in ("cross", "window", "linformer", "performer")
    },
}
SMALL["seed-prefix"] = SMALL["seed"]
SMALL["modern"] = {**SMALL["modern"], "text.block.num_heads": 6, "text.block.num_kv_heads": 2}
SMALL["window"] |= {
    "vision.block.kernel.image_window": 3,
    "text.block.kernel.text_window": 4,
}
SMALL["linformer"]["vision.block.kernel.rank"] = 5
# Models that others have published: a tower of another width than the text's.
_SMALL_TOWER = {"image_size": 32, "patch_size": 8, "num_layers": 1}
_SMALL_TOWER |= {f"block.{k}": v for k, v in (_SMALL_BLOCK | {"width": 40, "num_heads": 4}).items()}
_PUBLISHED = {
    "text.vocab_size": VOCABULARY,
    "text.num_layers": 2,
    **{f"text.block.{key}": value for key, value in _SMALL_BLOCK.items()},
    **{f"vision.{key}": value for key, value in _SMALL_TOWER.items()},
}
SMALL |= dict.fromkeys(("git-base", "blip-base", "vit-gpt2", "smolvlm-256m"), _PUBLISHED)
SMALL["git-base"] = _PUBLISHED | {"connector.width": 48, "connector.norm_eps": 0.02}
SMALL["smolvlm-256m"] = _PUBLISHED | {
    "vision.image_size": 36,  # the last four pixels go unseen
    "text.block.num_heads": 6,
    "text.block.num_kv_heads": 2,
    "connector.width": 48,
    "connector.reduction_factor": 2,
}

_CONNECTOR = {"block": {"width": 32, "num_heads": 4, "mlp_width": 56}, "num_layers": 1}
_WINDOW = {"kind": "sliding_window", "image_window": 3, "text_window": 4}
_ENCODER_BLOCK = {"width": 24, "num_heads": 2, "mlp_width": 40, "norm": "post"}
_ENCODER = {"vocab_size": VOCABULARY, "max_length": 48, "block": _ENCODER_BLOCK, "num_layers": 2}
# Ways to build a model that no preset takes, as changes of `tiny`: each switch is in one of them.
VARIANTS: dict[str, dict[str, Any]] = {
    # Text before the image, unlike widths, a class token among many.
    "text-first": {
        "fusion.order": "text_first",
        "vision.block.width": 24,
        "vision.class_token": True,
        "vision.final_norm": False,
        "text.block.norm": "post",
        "text.head": "own",
        "text.head_bias": True,
        "text.final_norm": False,
        "connector": _CONNECTOR | {"block": {"width": 32, "num_heads": 4, "mlp_width": 56, "norm": "post"}},
    },
    "causal": {"fusion.visibility": "causal"},
    "causal-text-first": {"fusion.visibility": "causal", "fusion.order": "text_first", "fusion.gate": "dynamic"},
    "splice": {"fusion": {"kind": "splice"}},
    "splice-prefix-multimodal": {
        "fusion": {"kind": "splice", "visibility": "prefix", "gate": "dynamic"},
        "text.block.rope": "multimodal",
        "text.positions": "none",
        "vision.class_token": True,
    },
    "splice-experts-window": {
        "fusion": {"kind": "splice", "visibility": "prefix", "gate": "tanh"},
        "text.block.experts": "mlp",
        "text.block.kernel": _WINDOW,
        "text.block.rope": "1d",
    },
    "cross-tanh": {"fusion": {"kind": "cross", "every": 2, "gate": "tanh"}, "text.block.rope": "1d"},
    "cross-dynamic": {"fusion": {"kind": "cross", "gate": "dynamic"}, "text.block.qk_norm": True},
    "gated-cross-dynamic": {"fusion": {"kind": "gated_cross", "every": 2, "gate": "dynamic"}},
    "concat-tanh": {"fusion.gate": "tanh", "fusion.order": "text_first"},
    "bidirectional-dynamic": {
        "fusion.visibility": "bidirectional",
        "fusion.gate": "dynamic",
        "vision.class_token": True,
        "text.block.kernel": _WINDOW | {"text_window": 7},
    },
    "block-of-today": {
        "text.block.norm": "sandwich",
        "text.block.norm_kind": "rmsnorm",
        "text.block.norm_eps": 0.02,
        "text.block.activation": "silu",
        "text.block.gated": True,
        "text.block.num_heads": 4,
        "text.block.num_kv_heads": 2,
        "text.block.qk_norm": True,
        "text.block.layer_scale": 0.1,
        "text.block.qkv_bias": False,
        "text.block.rope": "multimodal",
        "text.block.rope_theta": 100.0,
        "text.positions": "none",
        "vision.block.rope": "2d",
        "vision.positions": "none",
        "vision.class_token": True,
        "vision.embedding": "convolution",
    },
    "joint-experts": {
        "text.block.experts": "attention+mlp",
        "fusion.order": "text_first",
        "text.block.num_kv_heads": 1,
    },
    "joint-window": {"text.block.kernel": _WINDOW, "vision.class_token": True, "vision.positions": "learned_2d"},
    "window-text-first": {"text.block.kernel": _WINDOW, "fusion.order": "text_first", "vision.block.kernel": _WINDOW},
    "joint-performer": {
        "text.block.kernel": {"kind": "performer", "features": 32},
        "fusion.order": "text_first",
        "vision.block.kernel": {"kind": "performer", "features": 32},
        "vision.positions": "sincos_2d",
    },
    "linformer-connector": {
        "connector": _CONNECTOR
        | {"block": {"width": 32, "num_heads": 4, "mlp_width": 56, "kernel": {"kind": "linformer", "rank": 3}}},
    },
    "merging": {"vision.merged_tokens": 3, "vision.num_layers": 2, "vision.class_token": True},
    "merging-connector": {
        "vision.merged_tokens": 3,
        "connector": _CONNECTOR | {"block": {"width": 32, "num_heads": 4, "mlp_width": 56, "rope": "1d"}},
    },
    "pixel-shuffle": {"connector": _CONNECTOR | {"reduction": "pixel_shuffle", "positions": "learned_2d"}},
    "average": {
        "vision.patch_size": 4,
        "connector": _CONNECTOR | {"reduction": "average", "reduction_factor": 3, "positions": "sincos_2d"},
    },
    # A spliced image without its class tokens, heads that do not share out the width.
    "scaled-head-dim": {
        "fusion": {"kind": "splice"},
        "vision.block.width": 24,
        "vision.class_token": True,
        "vision.distillation_token": True,
        "vision.leaves_class_token": False,
        "connector": {
            "kind": "projection",
            "width": 32,
            "hidden_width": 40,
            "activation": "relu",
            "input_norm": True,
            "reduction": "pixel_shuffle",
        },
        "text.block.head_dim": 12,
        "text.block.num_kv_heads": 1,
        "text.block.norm_kind": "rmsnorm_plus_one",
        "text.block.activation": "gelu_tanh",
        "text.block.gated": True,
        "text.block.rope": "1d",
        "text.positions": "none",
        "text.embedding_scale": 2.5,
    },
    # A memory of another width, computed positions that do not start at 0.
    "cross-sinusoidal": {
        "fusion": {"kind": "cross"},
        "vision.block.width": 24,
        "vision.block.activation": "quick_gelu",
        "vision.patch_size": 9,
        "vision.cuts_patches": True,
        "vision.patch_bias": False,
        "vision.class_token": True,
        "vision.distillation_token": True,
        "vision.embedding_norm": True,
        "text.positions": "sinusoidal",
        "text.position_offset": 2,
        "text.embedding_norm": True,
        "text.head_transform": True,
        "text.block.norm": "post",
    },
    "question": {
        "fusion": {"kind": "cross"},
        "prompt_encoder": {"text": _ENCODER | {"embedding_norm": True}, "fusion": {"kind": "cross"}},
    },
    "question-spliced": {
        "vision": {
            "kind": "davit",
            "image_size": 32,
            "widths": [16, 24],
            "depths": [1, 1],
            "num_heads": [2, 3],
            "num_groups": [4, 2],
            "patch_sizes": [9, 3],
            "strides": [4, 2],
            "paddings": [0, 1],
            "norm_first": [False, True],
            "window": 3,
        },
        "connector": {"kind": "florence2", "width": 32, "max_side": 20},
        "fusion": {"kind": "cross"},
        "text.position_offset": 2,
        "prompt_encoder": {
            "text": _ENCODER | {"max_length": 80, "block": _ENCODER_BLOCK | {"width": 32}, "position_offset": 2},
            "fusion": {"kind": "splice", "placeholder_id": 1_000},
            "shares_tokens": True,
        },
    },
}


assert not set(VARIANTS) & set(PRESETS), "a variant would hide a preset"


def small_config(name: str) -> ModelConfig:
    if name in VARIANTS:
        return preset("tiny", {**SMALL["tiny"], **VARIANTS[name]})
    return preset(name, SMALL.get(name))


def strengthen(module: nn.Module, seed: int = 0) -> None:
    """Fill parameters and buffers with large random numbers, each kind on its own scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(_strong(name, torch.randn(tensor.shape, generator=generator)))


def _strong(name: str, random: Tensor) -> Tensor:
    shape = [size for size in random.shape if size > 1]
    if name.endswith("running_var"):
        return 0.5 + random.abs()
    if "position" in name or "pos_encoding" in name or name.endswith(("class_token", "cls_token")):
        return 0.7 * random
    if ".gate" in name:
        return 0.2 * random  # stronger ones saturate
    if len(shape) < 2:
        return 0.3 * random + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith(("tokens.weight", "text_embedding.weight")):
        return 0.5 * random
    # Stronger ones, above all in fifty convolutions in a row, blow float noise up to the tests' tolerance.
    strength = 1.2 if random.dim() == 4 else 1.5
    return strength * random / random[0].numel() ** 0.5


def build_model(config: ModelConfig, seed: int = 0) -> MultimodalTransformer:
    model = MultimodalTransformer(config)
    strengthen(model, seed)
    return model.eval().requires_grad_(False)


def callable_model(config: ModelConfig) -> Any:
    """Return a model that takes text without placeholders."""
    return called(build_model(config))


def called(model: MultimodalTransformer) -> Any:
    """Return the model so that it takes text alone, without placeholders or a question."""
    if model.config.prompt_encoder is not None:
        return WithQuestion(model)
    return model if model.config.placeholder_id is None else WithPlaceholders(model)


def random_pixels(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    size = config.vision.image_size
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, config.vision.channels, size, size, generator=generator)


def random_ids(count: int, length: int, seed: int = 0) -> Tensor:
    # The last entry is the placeholder of splice models.
    return torch.randint(0, VOCABULARY - 1, (count, length), generator=torch.Generator().manual_seed(2000 + seed))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class WithPlaceholders:
    """A splice model that is called as all others are: its image goes before the text, and the text is read out."""

    def __init__(self, model: MultimodalTransformer) -> None:
        self.model = model
        self.count = model.config.num_image_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, token_ids_BT: Tensor, pixels: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.read(token_ids_BT, self.model.see(pixels), valid_BT=valid_BT)

    def read(self, token_ids_BT: Tensor, image: ImageTokens, valid_BT: Tensor | None = None) -> Tensor:
        ids, image, valid = self._spliced(token_ids_BT, image, valid_BT)
        return self.model.read(ids, image, valid_BT=valid)[:, self.count :]

    def prefill(self, token_ids_BT: Tensor, image: ImageTokens, capacity: int, valid_BT: Tensor | None = None) -> Any:
        ids, image, valid = self._spliced(token_ids_BT, image, valid_BT)
        return self.model.prefill(ids, image, valid_BT=valid, capacity=capacity + self.count)

    def _spliced(self, token_ids_BT: Tensor, image: ImageTokens, valid_BT: Tensor | None) -> Any:
        places = torch.full((len(token_ids_BT), self.count), self.model.config.placeholder_id)
        valid = None if valid_BT is None else torch.cat([torch.ones_like(places, dtype=torch.bool), valid_BT], dim=1)
        return torch.cat([places, token_ids_BT], dim=1), image, valid


class WithQuestion:
    """A model with a prompt encoder that is called as all others are: it sees an image with one and the same question.

    Where the image is spliced into the question, its tokens stand behind the first word.
    """

    def __init__(self, model: MultimodalTransformer) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, token_ids_BT: Tensor, pixels: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.model.read(token_ids_BT, self.see(pixels), valid_BT=valid_BT)

    def see(self, pixels: Tensor) -> ImageTokens:
        image = self.model.see(pixels)
        return self.model.ask(self.question(image).expand(len(image), -1), image)

    def question(self, image: ImageTokens) -> Tensor:
        placeholder_id, count = self.model.config.placeholder_id, image.x_BND.shape[1]
        places = (
            torch.empty(1, 0, dtype=torch.long) if placeholder_id is None else torch.full((1, count), placeholder_id)
        )
        words = random_ids(1, 5, seed=7)
        return torch.cat([words[:, :1], places, words[:, 1:]], dim=1)


@pytest.fixture(params=[*PRESETS, *VARIANTS], scope="session")
def model(request: pytest.FixtureRequest) -> MultimodalTransformer:
    """Every preset, small, with strong weights; tests must not change it."""
    return callable_model(small_config(request.param))


@pytest.fixture(params=[n for n in (*PRESETS, *VARIANTS) if small_config(n).cacheable], scope="session")
def cacheable_model(request: pytest.FixtureRequest) -> MultimodalTransformer:
    """Those that can keep keys and values."""
    return callable_model(small_config(request.param))


@pytest.fixture(scope="session")
def tools() -> ModuleType:
    """This module, whose functions test files cannot import."""
    return sys.modules[__name__]
