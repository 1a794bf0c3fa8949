"""DaViT and Florence-2's connector: the outputs of transformers, for all sizes, and refusals.

The weights are strong enough that each of these, tried by hand, moves the connector's output, whose values reach 4,
by: tanh GELU in one MLP 0.004; without the bias of a norm 0.4, of a convolution 0.9, of qkv 1, of an MLP 0.1; without
row or column positions 0.2, rows and columns exchanged 0.4; no position in time, or cosine before sine 0.4; a block
without channel attention 3; no neighbours 5; windows from one cell further on, or a cell larger 5; zeros that fill up
windows hidden from attention 4; other heads or groups 5; blocks exchanged 5. The noise in float32 is below 1e-6.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bart import BartConfig
from transformers.models.florence2 import Florence2Config
from transformers.models.florence2.modeling_florence2 import Florence2MultiModalProjector, Florence2VisionBackbone

from mmt_cli.errors import ConfigError
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.davit import DaViTTower
from mmt_cli.model.davit_config import DaViTConfig, Florence2ConnectorConfig
from mmt_cli.model.florence_connector import Florence2Connector

# Their field → ours; projection_dim and the number of positions are the connector's.
FIELDS = {
    "embed_dim": "widths",
    "depths": "depths",
    "num_heads": "num_heads",
    "num_groups": "num_groups",
    "patch_size": "patch_sizes",
    "patch_stride": "strides",
    "patch_padding": "paddings",
    "patch_prenorm": "norm_first",
    "window_size": "window",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "activation_function": "activation",
    "in_channels": "channels",
}
RENAMES = [
    (r"convs\.(\d+)\.conv\.", r"embeddings.\1.convolution."),
    (r"convs\.(\d+)\.norm\.", r"embeddings.\1.norm."),
    (r"(spatial|channel)_block\.conv1\.", r"\1_attention.neighbours."),
    (r"(spatial|channel)_block\.norm1\.", r"\1_attention.norm."),
    (r"(spatial|channel)_block\.(?:window|channel)_attn\.qkv\.", r"\1_attention.inner.qkv."),
    (r"(spatial|channel)_block\.(?:window|channel)_attn\.proj\.", r"\1_attention.inner.out."),
    (r"(spatial|channel)_block\.conv2\.", r"\1_mlp.neighbours."),
    (r"(spatial|channel)_block\.norm2\.", r"\1_mlp.norm."),
    (r"(spatial|channel)_block\.ffn\.fc1\.", r"\1_mlp.inner.up."),
    (r"(spatial|channel)_block\.ffn\.fc2\.", r"\1_mlp.inner.down."),
    (r"spatial_", r"window_"),
    (r"image_projection\.", r"projection."),
    (r"image_proj_norm\.", r"norm."),
    (r"image_position_embed\.(row|column)_embeddings\.weight", r"\1_positions"),
]
UNEQUAL: dict[str, Any] = {
    "embed_dim": (12, 20, 18),
    "depths": (1, 2, 1),
    "num_heads": (3, 2, 6),
    "num_groups": (2, 5, 3),
    "patch_size": (5, 3, 2),
    "patch_stride": (3, 2, 1),
    "patch_padding": (2, 1, 0),
    "patch_prenorm": (False, True, False),
    "window_size": 3,
    "mlp_ratio": 2.3,
    "max_position_embeddings": 13,
    "projection_dim": 14,
}


def _strong(module: nn.Module) -> None:
    """Fill the weights so that no part can be missed: defaults hide most of them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            random = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                norm = "norm" in name and name.endswith("weight")
                weight.copy_(1 + 0.3 * random if norm else 0.3 * random)
            elif "embeddings" in name:
                weight.copy_(0.7 * random)
            else:  # convolutions stand outside of norms, where strong ones would blow up the map
                weight.copy_((2.5 if weight.ndim == 2 else 0.7) * random / weight[0].numel() ** 0.5)


def _theirs(**changes: Any) -> tuple[Florence2VisionBackbone, Florence2MultiModalProjector]:
    text = BartConfig(d_model=14, encoder_layers=1, decoder_layers=1, vocab_size=9)
    config = Florence2Config(vision_config=UNEQUAL | changes, text_config=text.to_dict())
    vision: Any = config.vision_config
    tower, connector = Florence2VisionBackbone(vision), Florence2MultiModalProjector(config)
    for part in (tower, connector):
        _strong(part.eval())
    return tower, connector


def _ours(
    theirs: tuple[Florence2VisionBackbone, Florence2MultiModalProjector],
) -> tuple[DaViTTower, Florence2Connector]:
    vision = theirs[0].config
    config = DaViTConfig.from_json({"image_size": 60} | {ours: getattr(vision, name) for name, ours in FIELDS.items()})
    tower = DaViTTower(config)
    connector = Florence2Connector(
        Florence2ConnectorConfig(width=vision.projection_dim, max_side=vision.max_position_embeddings), config.width
    )
    for ours, part in zip((tower, connector), theirs, strict=True):
        ours.load_state_dict({_renamed(name): weight for name, weight in part.named_parameters()})
    return tower, connector


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _pixels(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


# The maps of three stages are 12 x 16, 6 x 8, 5 x 7 cells; 18 x 24, 9 x 12, 8 x 11; 3 x 4, 2 x 2, one.
SIZES = [(36, 48), (53, 71), (8, 10)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": False, "activation_function": "relu", "patch_prenorm": (True, False, True)}, {"in_channels": 1}],
)
@torch.no_grad()
def test_tower_and_connector_are_those_of_transformers(size: tuple[int, int], changes: dict[str, Any]) -> None:
    theirs = _theirs(**changes)
    tower, connector = _ours(theirs)
    pixels_BCHW = _pixels(*size, channels=tower.config.channels)
    expected_BDHW = theirs[0](pixels_BCHW).last_hidden_state
    image = tower(pixels_BCHW)
    assert image.grid == tuple(expected_BDHW.shape[2:]) == tower.config.grid_of(*size)
    torch.testing.assert_close(image.x_BND, expected_BDHW.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    connected = connector(image)
    assert connected.grid is None
    assert connected.x_BND.shape[1] == connector.config.shape_of(image.grid, 0)[1]
    torch.testing.assert_close(connected.x_BND, theirs[1](expected_BDHW), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_norms_of_faint_maps_are_those_of_transformers() -> None:
    theirs = _theirs(patch_prenorm=(True, True, True))
    for part in theirs:
        for name, weight in part.named_parameters():
            weight.mul_(1 if "norm" in name else 1e-3)
    tower, connector = _ours(theirs)
    pixels_BCHW = 1e-3 * _pixels(36, 48)
    expected_BDHW = theirs[0](pixels_BCHW).last_hidden_state
    image = tower(pixels_BCHW)
    torch.testing.assert_close(image.x_BND, expected_BDHW.flatten(2).transpose(1, 2), atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(connector(image).x_BND, theirs[1](expected_BDHW), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_image_is_read_alike_alone_and_in_a_batch_and_images_differ() -> None:
    tower, connector = _ours(_theirs())
    pixels_BCHW = _pixels(53, 71)
    together_BND = connector(tower(pixels_BCHW)).x_BND
    for row, alone_CHW in enumerate(pixels_BCHW):
        alone_ND = connector(tower(alone_CHW[None])).x_BND[0]
        # One image alone goes through another convolution kernel, and strong weights enlarge what it rounds otherwise.
        torch.testing.assert_close(alone_ND, together_BND[row], atol=2e-4, rtol=1e-4)
    assert (together_BND[0] - together_BND[1]).abs().max() > 1


def test_defaults_are_florence_2_base() -> None:
    theirs = Florence2Config(vision_config={}, text_config=BartConfig().to_dict()).vision_config
    config = DaViTConfig()
    for name, ours in FIELDS.items():
        assert getattr(config, ours) == getattr(theirs, name), name
    assert (config.width, config.grid, config.num_tokens) == (1_024, (24, 24), 576)
    assert Florence2ConnectorConfig(width=768).shape_of(config.grid, 0) == (None, 577)


def test_json_comes_back_as_the_same_config() -> None:
    config = DaViTConfig(image_size=99, window=5, depths=(0, 3, 1, 2), norm_first=(True, False, True, True))
    tree = config.to_json()
    assert json.loads(json.dumps(tree)) == tree
    assert DaViTConfig.from_json(tree) == config
    assert hash(DaViTConfig.from_json(tree)) == hash(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": []}, "found 0, allowed 1 to 16"),
        ({"widths": [1] * 17}, "found 17, allowed 1 to 16"),
        ({"depths": [1, 1, 9]}, "widths 4, depths 3 values"),
        ({"norm_first": [True]}, "widths 4, norm_first 1 values"),
        ({"num_heads": [4, 8, 16, 33]}, "num_heads 33, width 1024"),
        ({"num_groups": [4, 7, 16, 32]}, "num_groups 7, width 256"),
        ({"widths": [128, 256, 512, 65_537]}, "65537, allowed 1 to 65536"),
        ({"strides": [4, 2, 0, 2]}, "0, allowed 1 to 256"),
        ({"strides": [4, 2, True, 2]}, "expected a list of int"),
        ({"strides": [4, 2, 1.0, 2]}, "expected a list of int"),
        ({"strides": [[4], 2, 2, 2]}, "expected a list of int"),
        ({"norm_first": [0, 1, 1, 1]}, "expected a list of bool"),
        ({"depths": 3}, "found 3, expected a list of int"),
        ({"depths": {"0": 1}}, "expected a list of int"),
        ({"mlp_ratio": 0.001}, "mlp_ratio 0.001, widths 128"),
        ({"image_size": 1, "paddings": [0, 1, 1, 1]}, "1 x 1 pixels, patch_sizes 7 at stage 0 where 1 x 1 are left"),
        ({"image_size": 8, "paddings": [3, 0, 1, 1]}, "8 x 8 pixels, patch_sizes 3 at stage 1 where 2 x 2 are left"),
    ],
)
def test_what_cannot_be_built_says_why(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DaViTConfig.from_json(settings)


def test_images_too_small_or_too_large_are_refused() -> None:
    tower, connector = _ours(_theirs())
    with pytest.raises(ConfigError, match="1 x 9 pixels, patch_sizes 2 at stage 2 where 1 x 2 are left"):
        tower(_pixels(1, 9))
    with pytest.raises(ConfigError, match="max_side 13, 2 x 14 cells"):
        connector(ImageTokens(x_BND=torch.zeros(1, 28, 18), grid=(2, 14)))
    with pytest.raises(ConfigError, match="class token lies in no grid"):
        connector(ImageTokens(x_BND=torch.zeros(1, 5, 18), grid=(2, 2)))
