"""Vision towers and blocks that several families share, with the defaults of CLIP and SigLIP."""

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


def bert_block(given: Given, **settings: Any) -> BlockConfig:
    """Return the block that a config with BERT's names describes, which ViT, CLIP and SigLIP have taken over.

    Args:
        given: the config's values.
        **settings: of the block, where the config does not say them.
    """
    return BlockConfig(
        width=given.whole("hidden_size"),
        num_heads=given.whole("num_attention_heads"),
        mlp_width=given.whole("intermediate_size"),
        norm_eps=given.real("layer_norm_eps"),
        activation=given.activation("hidden_act"),
        **settings,
    )


def vit_tower(given: Given, block: BlockConfig, num_layers: int | None = None, **settings: Any) -> PatchTowerConfig:
    """Return the tower that a `vision_config` describes.

    Args:
        given: the config's values.
        block: of its layers.
        num_layers: how many of them; as many as the config says if None.
        **settings: of the tower, where the config does not say them.
    """
    return PatchTowerConfig(
        image_size=given.side("image_size"),
        patch_size=given.side("patch_size"),
        channels=given.whole("num_channels"),
        embedding="convolution",
        cuts_patches=True,
        block=block,
        num_layers=given.whole("num_hidden_layers") if num_layers is None else num_layers,
        **settings,
    )


def siglip_tower(given: Given, *, num_layers: int, final_norm: bool) -> PatchTowerConfig:
    """Return SigLIP's tower, cut off after `num_layers`."""
    return vit_tower(given, bert_block(given), num_layers, final_norm=final_norm)


def clip_tower_config(
    given: Given, *, num_layers: int | None = None, leaves_class_token: bool = True, final_norm: bool = False
) -> PatchTowerConfig:
    """Return CLIP's tower, whole or cut off after `num_layers`."""
    return vit_tower(
        given,
        bert_block(given),
        num_layers,
        patch_bias=False,
        class_token=True,
        leaves_class_token=leaves_class_token,
        embedding_norm=True,
        final_norm=final_norm,
    )
