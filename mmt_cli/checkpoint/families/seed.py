"""The original listing's own parameter names, with its constructor's arguments in `config.json`."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import ANY, Family
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Continuation
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import preset

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

# `num_classes` was never used by the listing; the others are written by tools, not by the listing.
IGNORED = {"model_type", "num_classes", "architectures", "torch_dtype", "dtype", "transformers_version"}

_LAYER = "transformer_layers.{i}."
_WB = "{weight|bias}"

RULES: Rules = (
    Rule("text_embedding.weight", "text.tokens.weight"),
    Rule("text_pos_encoding", "text.positions"),
    Rule(f"image_patch_embedding.{_WB}", f"vision.embedding.{_WB}"),
    Rule("cls_token", "vision.class_token"),
    Rule("image_pos_encoding", "vision.positions"),
    Rule(_LAYER + f"multi_head_attn.in_proj_{_WB}", f"blocks.{{i}}.attention.inner.qkv.{_WB}"),
    Rule(_LAYER + f"multi_head_attn.out_proj.{_WB}", f"blocks.{{i}}.attention.inner.out.{_WB}"),
    Rule(_LAYER + f"norm1.{_WB}", f"blocks.{{i}}.attention.norm.{_WB}"),
    Rule(_LAYER + f"ff.0.{_WB}", f"blocks.{{i}}.mlp.inner.up.{_WB}"),
    Rule(_LAYER + f"ff.3.{_WB}", f"blocks.{{i}}.mlp.inner.down.{_WB}"),
    Rule(_LAYER + f"norm2.{_WB}", f"blocks.{{i}}.mlp.norm.{_WB}"),
    Rule(f"text_generation_head.0.{_WB}", f"head.norm.{_WB}"),
    Rule(f"text_generation_head.1.{_WB}", f"head.projection.{_WB}"),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that the constructor's arguments describe; missing ones take the listing's defaults."""
    return preset("seed", {key: value for key, value in data.items() if key not in IGNORED})


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Continuation:
    return Continuation(start=(words.bos_id,), strips=True)


FAMILY = Family(
    name="seed", config_from_hf=config_from_hf, rules=lambda config: RULES, prompting=_prompting, native=True
)
FAMILIES = {ANY: FAMILY}
