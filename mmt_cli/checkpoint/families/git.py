"""GIT (Wang et al. 2022): CLIP's tower, one linear map, and a BERT that reads image and text in one sequence."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.names import WB, affine, bert_layers, clip_tower
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Continuation
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig, TextConfig
from mmt_cli.model.fusion_config import ConcatConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TEXT = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "hidden_act": "gelu",
    "max_position_embeddings": 1_024,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

RULES: Rules = (
    *clip_tower("git.image_encoder.vision_model."),
    *affine({"git.visual_projection.visual_projection.0": "connector.layers.0"}),
    *affine({"git.visual_projection.visual_projection.1": "connector.norm"}),
    Rule("git.embeddings.word_embeddings.weight", "text.tokens.weight"),
    Rule("git.embeddings.position_embeddings.weight", "text.positions"),
    Rule("git.embeddings.position_ids", None),
    *affine({"git.embeddings.LayerNorm": "text.norm"}),
    *bert_layers("git.encoder.layer.{i}.", "blocks.{i}.", cross=False),
    Rule("git.img_temporal_embedding.{i}", None),  # of the frames of a video
    Rule(f"output.{WB}", f"head.projection.{WB}"),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `git` describes."""
    given = Given(data, _TEXT)
    vision = given.part("vision_config", _VISION)
    tower = BlockConfig(
        width=vision.whole("hidden_size"),
        num_heads=vision.whole("num_attention_heads"),
        mlp_width=vision.whole("intermediate_size"),
        norm_eps=vision.real("layer_norm_eps"),
        activation=vision.activation("hidden_act"),
    )
    block = BlockConfig(
        width=given.whole("hidden_size"),
        num_heads=given.whole("num_attention_heads"),
        mlp_width=given.whole("intermediate_size"),
        norm="post",
        norm_eps=given.real("layer_norm_eps"),
        activation=given.activation("hidden_act"),
    )
    return ModelConfig(
        vision=PatchTowerConfig(
            image_size=vision.side("image_size"),
            patch_size=vision.side("patch_size"),
            channels=vision.whole("num_channels"),
            embedding="convolution",
            patch_bias=False,
            cuts_patches=True,
            class_token=True,
            embedding_norm=True,
            final_norm=True,
            block=tower,
            num_layers=vision.whole("num_hidden_layers"),
        ),
        connector=ProjectionConfig(width=block.width, output_norm=True, norm_eps=tower.norm_eps),
        text=TextConfig(
            vocab_size=given.whole("vocab_size"),
            max_length=given.whole("max_position_embeddings"),
            embedding_norm=True,
            block=block,
            num_layers=given.whole("num_hidden_layers"),
            final_norm=False,
            head="own" if "output.weight" in names or not given.flag("tie_word_embeddings") else "tied",
            head_bias=True,
        ),
        fusion=ConcatConfig(),
    )


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Continuation:
    # The [SEP] that the tokenizer would put behind the prompt ends a caption.
    return Continuation(start=(special_id(words, "cls_token", "[CLS]"),))


FAMILY = Family(name="git", config_from_hf=config_from_hf, rules=lambda config: RULES, prompting=_prompting)
FAMILIES = {"GitForCausalLM": FAMILY}
