"""PaliGemma (Beyer et al. 2024): SigLIP, one linear map, and a Gemma that sees image and prompt in both directions."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.chat import image_token, subconfig
from mmt_cli.checkpoint.families.llava import LAYOUTS
from mmt_cli.checkpoint.families.names import affine, clip_tower
from mmt_cli.checkpoint.families.texts import GEMMA, read_text, text_rules
from mmt_cli.checkpoint.families.towers import SIGLIP, siglip_tower
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Chat
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.image_config import ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TOP = {"image_token_index": 256_000, "projection_dim": 2_048}
_NO_VISION = {
    "intermediate_size": 4_096,
    "hidden_size": 1_152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
_NO_TEXT = {
    "hidden_size": 2_048,
    "num_hidden_layers": 18,
    "intermediate_size": 16_384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257_152,
}

_TOWER = "vision_tower.vision_model."

RULES: Rules = (
    Rule(_TOWER + "head.{*}", None),  # SigLIP's pooling
    *clip_tower(_TOWER),
    *affine({"multi_modal_projector.linear": "connector.layers.0"}),
    *text_rules("language_model.model.", "language_model.lm_head.weight"),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `paligemma` describes."""
    given = Given(data, _TOP)
    _, vision = subconfig(data, "vision_config", {"siglip_vision_model": SIGLIP}, _NO_VISION)
    given.part("text_config", {}).only("use_bidirectional_attention", None, True)
    return ModelConfig(
        vision=siglip_tower(vision, num_layers=vision.whole("num_hidden_layers"), final_norm=True),
        connector=ProjectionConfig(width=given.whole("projection_dim")),
        # Positions count from 1, which turns queries and keys alike and is worth no more than rounding.
        text=replace(read_text(data, names, {"gemma": GEMMA}, _NO_TEXT), position_offset=1),
        fusion=SpliceConfig(visibility="prompt", placeholder_id=given.whole("image_token_index")),
    )


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Chat:
    image = image_token(words, Given(config, _TOP).whole("image_token_index"), "image_token", "<image>")
    special_id(words, "bos_token", "<bos>")
    return Chat(
        picture=lambda layout: image * layout.tokens,
        turn=("", words.names.get("bos_token", "<bos>"), "\n"),
    )


FAMILY = Family(
    name="paligemma",
    config_from_hf=config_from_hf,
    rules=lambda config: RULES,
    layouts=LAYOUTS,
    prompting=_prompting,
    answers=True,
)
FAMILIES = {"PaliGemmaForConditionalGeneration": FAMILY}
