"""GIT (Wang et al. 2022): CLIP's tower, one linear map, and a BERT that reads image and text in one sequence."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.names import WB, affine, bert_layers, clip_tower
from mmt_cli.checkpoint.families.towers import CLIP, bert_block, clip_tower_config
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Continuation
from mmt_cli.model.config import ModelConfig, TextConfig
from mmt_cli.model.fusion_config import ConcatConfig
from mmt_cli.model.image_config import ProjectionConfig

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
_VISION = CLIP | {"patch_size": 16}

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
    block = bert_block(given, norm="post")
    return ModelConfig(
        vision=clip_tower_config(vision, final_norm=True),
        connector=ProjectionConfig(width=block.width, output_norm=True, norm_eps=vision.real("layer_norm_eps")),
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
