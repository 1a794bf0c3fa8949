"""BART's layers, which TrOCR's decoder and Florence-2's two stacks are made of."""

from typing import Literal

from mmt_cli.checkpoint.families.base import Given
from mmt_cli.checkpoint.families.names import affine
from mmt_cli.checkpoint.keymap import Rules
from mmt_cli.model.block_config import BlockConfig


def bart_block(given: Given, stack: Literal["encoder", "decoder"]) -> BlockConfig:
    """Return the block of one of the stacks that a config of BART's kind describes."""
    return BlockConfig(
        width=given.whole("d_model"),
        num_heads=given.whole(f"{stack}_attention_heads"),
        mlp_width=given.whole(f"{stack}_ffn_dim"),
        norm="post",
        activation=given.activation("activation_function"),
    )


def bart_layers(theirs: str, ours: str, *, cross: bool) -> Rules:
    """Return the rules for the layers of one stack."""
    layer = {
        "self_attn.{q_proj|k_proj|v_proj}": "attention.inner.qkv",
        "self_attn.out_proj": "attention.inner.out",
        "self_attn_layer_norm": "attention.norm",
        "fc1": "mlp.inner.up",
        "fc2": "mlp.inner.down",
        "final_layer_norm": "mlp.norm",
    }
    attending = {
        "encoder_attn.q_proj": "cross_attention.inner.q",
        "encoder_attn.{k_proj|v_proj}": "cross_attention.inner.kv",
        "encoder_attn.out_proj": "cross_attention.inner.out",
        "encoder_attn_layer_norm": "cross_attention.norm",
    }
    return affine(layer | attending if cross else layer, theirs, ours)
