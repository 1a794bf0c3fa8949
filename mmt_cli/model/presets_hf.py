"""Configurations of models that others have published, at their real sizes."""

from typing import Literal

from mmt_cli.model.block_config import Activation, BlockConfig
from mmt_cli.model.config import ModelConfig, TextConfig
from mmt_cli.model.fusion_config import ConcatConfig, CrossConfig, SpliceConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig


def git_base() -> ModelConfig:
    """GIT-base: CLIP's tower over 224 pixels, and a BERT of 6 layers over image and text in one sequence."""
    return ModelConfig(
        vision=_vit(224, norm_eps=1e-5, activation="quick_gelu", patch_bias=False, embedding_norm=True),
        connector=ProjectionConfig(width=768, output_norm=True),
        text=_bert(vocab_size=30_522, max_length=1_024, num_layers=6, final_norm=False, head="own"),
        fusion=ConcatConfig(),
    )


def blip_base() -> ModelConfig:
    """BLIP-base: a vision transformer over 384 pixels, and a BERT of 12 layers that attends to it."""
    return ModelConfig(
        vision=_vit(384, norm_eps=1e-5),
        text=_bert(vocab_size=30_524, max_length=512, num_layers=12, final_norm=True, head_transform=True),
        fusion=CrossConfig(),
    )


def vit_gpt2() -> ModelConfig:
    """ViT-GPT2: a vision transformer over 224 pixels, and the small GPT-2, which attends to it."""
    block = BlockConfig(width=768, num_heads=12, mlp_width=3_072, activation="gelu_tanh")
    return ModelConfig(
        vision=_vit(224, norm_eps=1e-12),
        text=TextConfig(vocab_size=50_257, max_length=1_024, block=block, num_layers=12),
        fusion=CrossConfig(),
    )


def smolvlm_256m() -> ModelConfig:
    """SmolVLM-256M: SigLIP over tiles of 512 pixels, 64 tokens each, and a Llama of 30 layers."""
    vision = BlockConfig(width=768, num_heads=12, mlp_width=3_072, norm_eps=1e-6, activation="gelu_tanh")
    text = BlockConfig(
        width=576,
        num_heads=9,
        num_kv_heads=3,
        mlp_width=1_536,
        norm_kind="rmsnorm",
        norm_eps=1e-5,
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        rope="1d",
        rope_theta=100_000.0,
    )
    return ModelConfig(
        vision=PatchTowerConfig(
            image_size=512,
            patch_size=16,
            embedding="convolution",
            cuts_patches=True,
            final_norm=True,
            block=vision,
            num_layers=12,
        ),
        connector=ProjectionConfig(width=576, reduction="pixel_shuffle", reduction_factor=4, bias=False),
        text=TextConfig(vocab_size=49_280, max_length=8_192, positions="none", block=text, num_layers=30, head="own"),
        fusion=SpliceConfig(placeholder_id=49_190),
    )


def _vit(
    image_size: int,
    *,
    norm_eps: float,
    activation: Activation = "gelu",
    patch_bias: bool = True,
    embedding_norm: bool = False,
) -> PatchTowerConfig:
    """ViT-B/16 with a class token."""
    return PatchTowerConfig(
        image_size=image_size,
        embedding="convolution",
        patch_bias=patch_bias,
        class_token=True,
        embedding_norm=embedding_norm,
        final_norm=True,
        block=BlockConfig(width=768, num_heads=12, mlp_width=3_072, norm_eps=norm_eps, activation=activation),
        num_layers=12,
    )


def _bert(
    *,
    vocab_size: int,
    max_length: int,
    num_layers: int,
    final_norm: bool,
    head: Literal["tied", "own"] = "tied",
    head_transform: bool = False,
) -> TextConfig:
    """BERT-base as a decoder."""
    return TextConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        embedding_norm=True,
        block=BlockConfig(width=768, num_heads=12, mlp_width=3_072, norm="post", norm_eps=1e-12),
        num_layers=num_layers,
        final_norm=final_norm,
        head=head,
        head_bias=True,
        head_transform=head_transform,
    )
