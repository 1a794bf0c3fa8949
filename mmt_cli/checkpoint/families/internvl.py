"""InternVL (Chen et al. 2024, Zhu et al. 2025) in transformers' layout: a ViT over tiles, pixel shuffle, a Qwen2."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given
from mmt_cli.checkpoint.families.chat import Defaults, feature_layers, first_layers, image_token, subconfig
from mmt_cli.checkpoint.families.names import affine
from mmt_cli.checkpoint.families.texts import QWEN2, read_text, text_rules
from mmt_cli.checkpoint.families.towers import bert_block, vit_tower
from mmt_cli.checkpoint.keymap import Layouts, Rule, Rules
from mmt_cli.errors import ModelError
from mmt_cli.inputs.prompt import Chat
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TOP = {
    "image_token_id": 151_667,
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
_VISION: Defaults = {
    "hidden_size": 1_024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "use_qk_norm": False,
    "intermediate_size": 4_096,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
}

# As LLaVA's; the tower has never had a prefix of its own.
LAYOUTS: Layouts = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `internvl` describes."""
    given = Given(data, _TOP)
    given.only("vision_feature_select_strategy", "default")
    text = read_text(data, names, {"qwen2": QWEN2})
    return ModelConfig(
        vision=_tower(data, given),
        connector=ProjectionConfig(
            width=text.block.width,
            hidden_width=text.block.width,
            activation=given.activation("projector_hidden_act"),
            reduction="pixel_shuffle",
            reduction_factor=_factor(given.real("downsample_ratio")),
            input_norm=True,
        ),
        text=text,
        fusion=SpliceConfig(placeholder_id=given.whole("image_token_id")),
    )


def _tower(data: Mapping[str, Any], given: Given) -> PatchTowerConfig:
    _, vision = subconfig(data, "vision_config", {"internvl_vision": _VISION})
    # These others are of towers of six billion parameters, or of none that are public.
    vision.only("use_qk_norm", False)
    vision.only("norm_type", "layer_norm")
    vision.only("use_absolute_position_embeddings", True)
    vision.only("use_mean_pooling", True)
    block = bert_block(
        vision, qkv_bias=vision.flag("attention_bias"), layer_scale=vision.real("layer_scale_init_value")
    )
    layers = feature_layers(given, vision.whole("num_hidden_layers"))
    return vit_tower(vision, block, layers, class_token=True, leaves_class_token=False)


def _factor(ratio: float) -> int:
    """Return the side of the square of cells that becomes one token."""
    factor = round(1 / ratio) if 0 < ratio <= 1 else 0
    if factor * ratio != 1:
        raise ModelError(f"this is no whole number of cells (downsample_ratio {ratio}, 1 / {factor}); use another")
    return factor


def _rules(config: ModelConfig) -> Rules:
    assert isinstance(config.vision, PatchTowerConfig)
    layer = {
        "attention.{q_proj|k_proj|v_proj}": "attention.inner.qkv",
        "attention.projection_layer": "attention.inner.out",
        "layernorm_before": "attention.norm",
        "mlp.fc1": "mlp.inner.up",
        "mlp.fc2": "mlp.inner.down",
        "layernorm_after": "mlp.norm",
    }
    theirs, ours = "vision_tower.encoder.layer.{i}.", "vision.blocks.{i}."
    layers = (
        *affine(layer, theirs, ours),
        Rule(theirs + "lambda_1", ours + "attention.scale.factor"),
        Rule(theirs + "lambda_2", ours + "mlp.scale.factor"),
    )
    connector = {"layer_norm": "input_norm", "linear_1": "layers.0", "linear_2": "layers.2"}
    return (
        Rule("vision_tower.embeddings.cls_token", "vision.class_token"),
        Rule("vision_tower.embeddings.mask_token", None),  # for training alone
        Rule("vision_tower.embeddings.position_embeddings", "vision.positions"),
        *affine({"vision_tower.embeddings.patch_embeddings.projection": "vision.embedding"}),
        *first_layers(layers, config.vision.num_layers),
        *affine(connector, "multi_modal_projector.", "connector."),
        *text_rules("language_model.model.", "language_model.lm_head.weight"),
    )


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Chat:
    placeholder_id = Given(config, _TOP).whole("image_token_id")
    image = image_token(words, placeholder_id, "context_image_token", "<IMG_CONTEXT>")
    first, last = words.names.get("start_image_token", "<img>"), words.names.get("end_image_token", "</img>")
    end = "<|im_end|>\n"
    return Chat(
        picture=lambda layout: first + image * (layout.tokens * layout.tiles) + last,
        turn=("<|im_start|>user\n", "\n", f"{end}<|im_start|>assistant\n"),
        system_turn=("<|im_start|>system\n", end),
    )


FAMILY = Family(
    name="internvl",
    config_from_hf=config_from_hf,
    rules=_rules,
    layouts=LAYOUTS,
    prompting=_prompting,
    answers=True,
)
FAMILIES = {"InternVLForConditionalGeneration": FAMILY}
