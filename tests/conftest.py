"""Every preset at a size for tests, with weights so strong that a mistake anywhere moves the logits.

Freshly initialised models are nearly blind: a lost mask, norm or bias changes their logits by less than noise.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from mmt_cli.model.config import ModelConfig
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
    "mini": {
        "vision.image_size": 64,
        "text.vocab_size": VOCABULARY,
        "text.num_layers": 3,
        **{f"{part}.block.{key}": value for part in ("text", "connector") for key, value in _SMALL_BLOCK.items()},
    },
}
# Ways to build a model that no preset takes: text before the image, unlike widths, a class token among many.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny-text-first": {
        "text.vocab_size": VOCABULARY,
        "fusion.order": "text_first",
        "vision.block.width": 24,
        "vision.class_token": True,
        "vision.final_norm": False,
        "text.block.norm": "post",
        "text.head": "own",
        "text.head_bias": True,
        "text.final_norm": False,
        "connector": {"block": {"width": 32, "num_heads": 4, "mlp_width": 56, "norm": "post"}, "num_layers": 1},
    },
}


def small_config(name: str) -> ModelConfig:
    if name in VARIANTS:
        return preset("tiny", VARIANTS[name])
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


def random_pixels(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    size = config.vision.image_size
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, config.vision.channels, size, size, generator=generator)


def random_ids(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(2000 + seed))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[*PRESETS, *VARIANTS], scope="session")
def model(request: pytest.FixtureRequest) -> MultimodalTransformer:
    """Every preset, small, with strong weights; tests must not change it."""
    return build_model(small_config(request.param))


@pytest.fixture(params=[*(n for n in PRESETS if small_config(n).cacheable), *VARIANTS], scope="session")
def cacheable_model(request: pytest.FixtureRequest) -> MultimodalTransformer:
    """Those that can keep keys and values."""
    return build_model(small_config(request.param))


@pytest.fixture(scope="session")
def tools() -> ModuleType:
    """This module, whose functions test files cannot import."""
    return sys.modules[__name__]
