"""LLaVA 1.5 (Liu et al. 2024): an inner layer of CLIP or SigLIP, an MLP, and a Llama or Qwen2."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.chat import feature_layers, first_layers, image_token, subconfig
from mmt_cli.checkpoint.families.names import WB, affine, clip_tower
from mmt_cli.checkpoint.families.texts import LLAMA, QWEN2, read_text, text_rules
from mmt_cli.checkpoint.families.towers import CLIP, SIGLIP, clip_tower_config, siglip_tower
from mmt_cli.checkpoint.keymap import Layouts, Rule, Rules
from mmt_cli.inputs.prompt import Chat
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TOP = {
    "image_token_index": 32_000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
}
_TOWERS = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP}
_TEXTS = {"llama": LLAMA, "qwen2": QWEN2}
_NO_VISION = {
    "intermediate_size": 4_096,
    "hidden_size": 1_024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}

_TOWER = "vision_tower.vision_model."

# The rules are for names as before transformers 4.52. Then came a leading `model.`, which 5.0 took away again, on disk,
# with the tower's own prefix.
LAYOUTS: Layouts = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", _TOWER),
    (r"model\.multi_modal_projector\.", "multi_modal_projector."),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `llava` describes."""
    given = Given(data, _TOP)
    text = read_text(data, names, _TEXTS)
    return ModelConfig(
        vision=_tower(data, given),
        connector=ProjectionConfig(
            width=text.block.width,
            hidden_width=text.block.width,
            activation=given.activation("projector_hidden_act"),
            bias=given.flag("multimodal_projector_bias"),
        ),
        text=text,
        fusion=SpliceConfig(placeholder_id=given.whole("image_token_index")),
    )


def _tower(data: Mapping[str, Any], given: Given) -> PatchTowerConfig:
    """Return the tower, whose tokens are taken before its last norm whatever the layer."""
    kind, vision = subconfig(data, "vision_config", _TOWERS, _NO_VISION)
    count = feature_layers(given, vision.whole("num_hidden_layers"))
    if kind == "siglip_vision_model":
        # `default` takes the first token away, which in SigLIP is a patch.
        given.only("vision_feature_select_strategy", "full")
        return siglip_tower(vision, num_layers=count, final_norm=False)
    given.only("vision_feature_select_strategy", "default", "full")
    full = given.get("vision_feature_select_strategy") == "full"
    return clip_tower_config(vision, num_layers=count, leaves_class_token=full)


def _rules(config: ModelConfig) -> Rules:
    assert isinstance(config.vision, PatchTowerConfig)
    return (
        # What stands behind the layer that is read: the last norm, SigLIP's pooling.
        Rule(f"{_TOWER}post_layernorm.{WB}", None),
        Rule(_TOWER + "head.{*}", None),
        *first_layers(clip_tower(_TOWER), config.vision.num_layers),
        *affine({"linear_1": "layers.0", "linear_2": "layers.2"}, "multi_modal_projector.", "connector."),
        *text_rules("language_model.model.", "language_model.lm_head.weight"),
    )


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Chat:
    image = image_token(words, Given(config, _TOP).whole("image_token_index"), "image_token", "<image>")
    kind, _ = subconfig(config, "text_config", _TEXTS)
    if kind == "qwen2":  # llava-hf/llava-interleave-qwen
        end = "<|im_end|>"
        return Chat(
            picture=lambda layout: image * layout.tokens,
            turn=("<|im_start|>user ", "\n", f"{end}<|im_start|>assistant\n"),
            system_turn=("<|im_start|>system \n", end),
        )
    return Chat(
        start=(special_id(words, "bos_token", "<s>"),),
        picture=lambda layout: image * layout.tokens,
        turn=("USER: ", "\n", " ASSISTANT:"),
        system_turn=("", " "),
    )


FAMILY = Family(
    name="llava", config_from_hf=config_from_hf, rules=_rules, layouts=LAYOUTS, prompting=_prompting, answers=True
)
FAMILIES = {"LlavaForConditionalGeneration": FAMILY}
