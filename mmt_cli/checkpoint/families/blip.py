"""BLIP (Li et al. 2022): a vision transformer, and a BERT that attends to it; for questions a second BERT reads them.

Captioning and answering share a `model_type`; `architectures` tells them apart.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.names import WB, affine, bert_layers
from mmt_cli.checkpoint.families.towers import bert_block, vit_tower
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.prompt import Continuation, Question
from mmt_cli.model.config import ModelConfig, PromptEncoderConfig, TextConfig
from mmt_cli.model.fusion_config import CrossConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TEXT = {
    "vocab_size": 30_524,
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "bos_token_id": 30_522,
    "sep_token_id": 102,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_TOWER = {
    "self_attn.qkv": "attention.inner.qkv",
    "self_attn.projection": "attention.inner.out",
    "layer_norm1": "attention.norm",
    "mlp.fc1": "mlp.inner.up",
    "mlp.fc2": "mlp.inner.down",
    "layer_norm2": "mlp.norm",
}


def _embeddings(theirs: str, ours: str) -> Rules:
    return (
        Rule(theirs + "word_embeddings.weight", ours + "tokens.weight"),
        Rule(theirs + "position_embeddings.weight", ours + "positions"),
        Rule(theirs + "position_ids", None),
        *affine({"LayerNorm": "norm"}, theirs, ours),
    )


_HEAD = "text_decoder.cls.predictions."
RULES: Rules = (
    Rule("vision_model.embeddings.class_embedding", "vision.class_token"),
    Rule("vision_model.embeddings.position_embedding", "vision.positions"),
    *affine({"embeddings.patch_embedding": "embedding", "post_layernorm": "norm"}, "vision_model.", "vision."),
    *affine(_TOWER, "vision_model.encoder.layers.{i}.", "vision.blocks.{i}."),
    *_embeddings("text_decoder.bert.embeddings.", "text."),
    *bert_layers("text_decoder.bert.encoder.layer.{i}.", "blocks.{i}.", cross=True),
    *affine({"transform.dense": "head.transform.linear", "transform.LayerNorm": "head.norm"}, _HEAD),
    Rule(_HEAD + "bias", "head.projection.bias"),
    Rule(_HEAD + "decoder.bias", None),  # the same tensor once more
    Rule(_HEAD + "decoder.weight", "head.projection.weight"),
    *_embeddings("text_encoder.embeddings.", "prompt_encoder.text."),
    *bert_layers("text_encoder.encoder.layer.{i}.", "prompt_encoder.blocks.{i}.", cross=True),
    Rule(f"text_encoder.pooler.dense.{WB}", None),
)


def caption_config(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the captioning model that a `config.json` of type `blip` describes."""
    given = Given(data, {})
    vision, text = given.part("vision_config", _VISION), given.part("text_config", _TEXT)
    block = bert_block(text, norm="post")
    return ModelConfig(
        vision=vit_tower(vision, bert_block(vision), class_token=True, final_norm=True),
        text=TextConfig(
            vocab_size=text.whole("vocab_size"),
            max_length=text.whole("max_position_embeddings"),
            embedding_norm=True,
            block=block,
            num_layers=text.whole("num_hidden_layers"),
            head="own" if _HEAD + "decoder.weight" in names else "tied",
            head_bias=True,
            head_transform=True,
        ),
        fusion=CrossConfig(),
    )


def answer_config(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the answering model: the same, whose decoder attends to what an encoder makes of question and image."""
    config = caption_config(data, names)
    encoder = dataclasses.replace(config.text, head="tied", head_bias=False, head_transform=False, final_norm=False)
    return dataclasses.replace(config, prompt_encoder=PromptEncoderConfig(text=encoder, fusion=CrossConfig()))


def _start(config: Mapping[str, Any]) -> tuple[int]:
    return (Given(config, {}).part("text_config", _TEXT).whole("bos_token_id"),)


def _caption_prompting(config: Mapping[str, Any], words: "Tokenizer") -> Continuation:
    return Continuation(start=_start(config))


def _answer_prompting(config: Mapping[str, Any], words: "Tokenizer") -> Question:
    ends = special_id(words, "cls_token", "[CLS]"), special_id(words, "sep_token", "[SEP]")
    return Question(start=_start(config), before=(ends[0],), behind=(ends[1],))


def _generation(options: GenerationOptions, config: Mapping[str, Any]) -> GenerationOptions:
    """Let texts end at [SEP], and pass over the folder's other defaults, as transformers does for BLIP.

    The end token that the config names is another one, which no text has.
    """
    end = Given(config, {}).part("text_config", _TEXT).whole("sep_token_id")
    return GenerationOptions(end_token_ids=(end,))


CAPTIONING = Family(
    name="blip",
    config_from_hf=caption_config,
    rules=lambda config: RULES,
    prompting=_caption_prompting,
    generation=_generation,
    image_processor="BlipImageProcessor",
)
ANSWERING = Family(
    name="blip-vqa",
    config_from_hf=answer_config,
    rules=lambda config: RULES,
    prompting=_answer_prompting,
    generation=_generation,
    image_processor="BlipImageProcessor",
    answers=True,
)
FAMILIES = {"BlipForConditionalGeneration": CAPTIONING, "BlipForQuestionAnswering": ANSWERING}
