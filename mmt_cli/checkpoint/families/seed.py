"""The original listing's own parameter names, with its constructor's arguments in `config.json`."""

from collections.abc import Mapping
from typing import Any

from mmt_cli.checkpoint.keymap import Rules
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import preset

# `num_classes` was never used by the listing; the others are written by tools, not by the listing.
IGNORED = {"model_type", "num_classes", "architectures", "torch_dtype", "dtype", "transformers_version"}

_LAYER = r"transformer_layers\.(\d+)\."
_AFFINE = r"(weight|bias)"

RULES: Rules = (
    (r"text_embedding\.weight", "text.tokens.weight"),
    (r"text_pos_encoding", "text.positions"),
    (r"image_patch_embedding\." + _AFFINE, r"vision.embedding.\1"),
    (r"cls_token", "vision.class_token"),
    (r"image_pos_encoding", "vision.positions"),
    (_LAYER + r"multi_head_attn\.in_proj_" + _AFFINE, r"blocks.\1.attention.inner.qkv.\2"),
    (_LAYER + r"multi_head_attn\.out_proj\." + _AFFINE, r"blocks.\1.attention.inner.out.\2"),
    (_LAYER + r"norm1\." + _AFFINE, r"blocks.\1.attention.norm.\2"),
    (_LAYER + r"ff\.0\." + _AFFINE, r"blocks.\1.mlp.inner.up.\2"),
    (_LAYER + r"ff\.3\." + _AFFINE, r"blocks.\1.mlp.inner.down.\2"),
    (_LAYER + r"norm2\." + _AFFINE, r"blocks.\1.mlp.norm.\2"),
    (r"text_generation_head\.0\." + _AFFINE, r"head.norm.\1"),
    (r"text_generation_head\.1\." + _AFFINE, r"head.projection.\1"),
)


def config_from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """Return the model that the constructor's arguments describe; missing ones take the listing's defaults."""
    return preset("seed", {key: value for key, value in data.items() if key not in IGNORED})
