"""The vision towers of chat models: CLIP's and SigLIP's."""

from typing import Any

from mmt_cli.checkpoint.families.base import Given
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.image_config import PatchTowerConfig

CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIGLIP: dict[str, Any] = CLIP | {
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def tower_block(given: Given) -> BlockConfig:
    """Return the block that a `vision_config` of these towers describes."""
    return BlockConfig(
        width=given.whole("hidden_size"),
        num_heads=given.whole("num_attention_heads"),
        mlp_width=given.whole("intermediate_size"),
        norm_eps=given.real("layer_norm_eps"),
        activation=given.activation("hidden_act"),
    )


def siglip_tower(given: Given, *, num_layers: int, final_norm: bool) -> PatchTowerConfig:
    """Return SigLIP's tower, cut off after `num_layers`."""
    return PatchTowerConfig(
        image_size=given.side("image_size"),
        patch_size=given.side("patch_size"),
        channels=given.whole("num_channels"),
        embedding="convolution",
        cuts_patches=True,
        final_norm=final_norm,
        block=tower_block(given),
        num_layers=num_layers,
    )


def clip_tower_config(given: Given, *, num_layers: int, leaves_class_token: bool) -> PatchTowerConfig:
    """Return CLIP's tower, cut off after `num_layers` and so without its last norm."""
    return PatchTowerConfig(
        image_size=given.side("image_size"),
        patch_size=given.side("patch_size"),
        channels=given.whole("num_channels"),
        embedding="convolution",
        patch_bias=False,
        cuts_patches=True,
        class_token=True,
        leaves_class_token=leaves_class_token,
        embedding_norm=True,
        block=tower_block(given),
        num_layers=num_layers,
    )
