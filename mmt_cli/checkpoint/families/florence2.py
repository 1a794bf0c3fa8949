"""Florence-2 (Xiao et al. 2024): a DaViT, and BART, whose encoder reads image and task in one sequence."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmt_cli.checkpoint.families.bart import bart_block, bart_layers
from mmt_cli.checkpoint.families.base import Family, Given, special_id, start_id
from mmt_cli.checkpoint.families.names import affine
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Layout, Prompt
from mmt_cli.model.config import ModelConfig, PromptEncoderConfig, TextConfig
from mmt_cli.model.davit_config import DaViTConfig, Florence2ConnectorConfig
from mmt_cli.model.fusion_config import CrossConfig, SpliceConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_CONFIG = {"image_token_id": 51_289}
_TEXT = {
    "vocab_size": 50_265,
    "max_position_embeddings": 1_024,
    "d_model": 1_024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4_096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4_096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "scale_embedding": False,
}
# Names in DaViT's config of ours; defaults are those of the class.
_TOWER_LISTS = {
    "widths": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "num_groups": "num_groups",
    "patch_sizes": "patch_size",
    "strides": "patch_stride",
    "paddings": "patch_padding",
    "norm_first": "patch_prenorm",
}
_VISION = {
    "in_channels": 3,
    "window_size": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "activation_function": "gelu",
    "projection_dim": 1_024,
    "max_position_embeddings": 50,
}

_ATTENTION = {
    "conv1": "{part}_attention.neighbours",
    "norm1": "{part}_attention.norm",
    "conv2": "{part}_mlp.neighbours",
    "norm2": "{part}_mlp.norm",
    "ffn.fc1": "{part}_mlp.inner.up",
    "ffn.fc2": "{part}_mlp.inner.down",
}


def _tower_block(theirs: str, attention: str, part: str) -> Rules:
    pairs = {name: ours.replace("{part}", part) for name, ours in _ATTENTION.items()}
    pairs |= {f"{attention}.qkv": f"{part}_attention.inner.qkv", f"{attention}.proj": f"{part}_attention.inner.out"}
    return affine(pairs, f"model.vision_tower.blocks.{{i}}.{{j}}.{theirs}.", "vision.blocks.{i}.{j}.")


def _stack(theirs: str, embedding: str, blocks: str, *, cross: bool) -> Rules:
    return (
        Rule(theirs + "embed_tokens.weight", None),  # the shared one once more
        Rule(theirs + "embed_positions.weight", embedding + "positions"),
        *affine({"layernorm_embedding": "norm"}, theirs, embedding),
        *bart_layers(theirs + "layers.{i}.", blocks + "{i}.", cross=cross),
    )


_CONNECTOR, _LANGUAGE = "model.multi_modal_projector.", "model.language_model."
RULES: Rules = (
    *affine({"conv": "convolution", "norm": "norm"}, "model.vision_tower.convs.{i}.", "vision.embeddings.{i}."),
    *_tower_block("spatial_block", "window_attn", "window"),
    *_tower_block("channel_block", "channel_attn", "channel"),
    Rule(_CONNECTOR + "image_projection.weight", "connector.projection.weight"),
    *affine({"image_proj_norm": "norm"}, _CONNECTOR, "connector."),
    Rule(_CONNECTOR + "image_position_embed.row_embeddings.weight", "connector.row_positions"),
    Rule(_CONNECTOR + "image_position_embed.column_embeddings.weight", "connector.column_positions"),
    Rule(
        _CONNECTOR + "visual_temporal_embed.pos_idx_to_embed", None
    ),  # of the frames of a video; the first is computed
    Rule(_LANGUAGE + "shared.weight", "text.tokens.weight"),
    *_stack(_LANGUAGE + "encoder.", "prompt_encoder.text.", "prompt_encoder.blocks.", cross=False),
    *_stack(_LANGUAGE + "decoder.", "text.", "blocks.", cross=True),
    Rule("lm_head.weight", "head.projection.weight"),
)

# A task stands for a sentence; what a user writes behind one of the second kind goes into it.
_TASKS = {
    "<OCR>": "What is the text in the image?",
    "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OD>": "Locate the objects with category name in the image.",
    "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
    "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
}
_TASKS_WITH_TEXT = {
    "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {}",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {} in the image with mask",
    "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {}",
    "<OPEN_VOCABULARY_DETECTION>": "Locate {} in the image.",
    "<REGION_TO_CATEGORY>": "What is the region {}?",
    "<REGION_TO_DESCRIPTION>": "What does the region {} describe?",
    "<REGION_TO_OCR>": "What text is in the region {}?",
}
_DEFAULT_TASK = "<CAPTION>"


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `florence2` describes."""
    given = Given(data, _CONFIG)
    vision, text = given.part("vision_config", _VISION), given.part("text_config", _TEXT)
    lists = {ours: vision.get(theirs) for ours, theirs in _TOWER_LISTS.items()}
    lists = {name: tuple(value) for name, value in lists.items() if isinstance(value, list)}
    max_side = vision.whole("max_position_embeddings")
    shrinks = math.prod(s for s in lists.get("strides", DaViTConfig.strides) if type(s) is int)
    encoder, decoder = (_text(text, stack) for stack in ("encoder", "decoder"))
    placeholder_id = given.whole("image_token_id")
    return ModelConfig(
        vision=DaViTConfig(
            channels=vision.whole("in_channels"),
            window=vision.whole("window_size"),
            mlp_ratio=vision.real("mlp_ratio"),
            qkv_bias=vision.flag("qkv_bias"),
            activation=vision.activation("activation_function"),
            image_size=min(DaViTConfig.image_size, max_side * shrinks),  # the image processor's, and not said here
            **lists,
        ),
        connector=Florence2ConnectorConfig(width=vision.whole("projection_dim"), max_side=max_side),
        prompt_encoder=PromptEncoderConfig(
            text=encoder, fusion=SpliceConfig(visibility="causal", placeholder_id=placeholder_id), shares_tokens=True
        ),
        text=decoder,
        fusion=CrossConfig(),
    )


def _text(text: Given, stack: Literal["encoder", "decoder"]) -> TextConfig:
    width = text.whole("d_model")
    return TextConfig(
        vocab_size=text.whole("vocab_size"),
        max_length=text.whole("max_position_embeddings"),
        position_offset=2,
        embedding_scale=math.sqrt(width) if text.flag("scale_embedding") else 1.0,
        embedding_norm=True,
        block=bart_block(text, stack),
        num_layers=text.whole(f"{stack}_layers"),
        final_norm=False,
    )


@dataclass(frozen=True, kw_only=True)
class TaskPrompting:
    """Image and task for the encoder; the answer starts from one id.

    Attributes:
        start: that id.
        placeholder_id: the token that stands for each image token.
        before: ids between image and task.
        behind: ids behind the task.
    """

    start: int
    placeholder_id: int
    before: tuple[int, ...]
    behind: tuple[int, ...]

    def __call__(self, words: "Tokenizer", text: str | None, image: Layout) -> Prompt:
        """Return the start, and image and task for the encoder; a caption is asked for where nothing is."""
        task = words.encode(_sentence(_DEFAULT_TASK if text is None else text))
        placeholders = [self.placeholder_id] * (image.tokens * image.tiles)
        return Prompt(ids=(self.start,), encoder_ids=(*placeholders, *self.before, *task, *self.behind))


def _sentence(prompt: str) -> str:
    """Return the sentence that a task stands for; other prompts stay as they are."""
    if prompt in _TASKS:
        return _TASKS[prompt]
    for task, sentence in _TASKS_WITH_TEXT.items():
        if task in prompt:
            return sentence.format(prompt.replace(task, "").strip())
    return prompt


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> TaskPrompting:
    return TaskPrompting(
        start=start_id(config, "text_config"),
        placeholder_id=Given(config, _CONFIG).whole("image_token_id"),
        before=(special_id(words, "bos_token", "<s>"),),
        behind=(special_id(words, "eos_token", "</s>"),),
    )


FAMILY = Family(
    name="florence2", config_from_hf=config_from_hf, rules=lambda config: RULES, prompting=_prompting, answers=True
)
FAMILIES = {"Florence2ForConditionalGeneration": FAMILY}
