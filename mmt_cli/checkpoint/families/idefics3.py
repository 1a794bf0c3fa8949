"""Idefics3 and SmolVLM (Laurençon et al. 2024, Marafioti et al. 2025): SigLIP over tiles, pixel shuffle, a Llama."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family, Given, special_id
from mmt_cli.checkpoint.families.chat import image_token, subconfig
from mmt_cli.checkpoint.families.names import clip_tower
from mmt_cli.checkpoint.families.texts import LLAMA, read_text, text_rules
from mmt_cli.checkpoint.families.towers import SIGLIP, siglip_tower
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.inputs.prompt import Chat, Layout
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.image_config import ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_TOP = {"image_token_id": 128_257, "scale_factor": 2}
_VISION = SIGLIP | {"hidden_size": 1_152, "num_attention_heads": 16, "patch_size": 32}
_NO_TEXT = {"rms_norm_eps": 1e-5}

_AROUND = "<fake_token_around_image>"

RULES: Rules = (
    *clip_tower("model.vision_model."),
    Rule("model.connector.modality_projection.proj.weight", "connector.layers.0.weight"),
    *text_rules("model.text_model.", "lm_head.weight"),
)


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `idefics3` or `smolvlm` describes."""
    given = Given(data, _TOP)
    # SmolVLM and Idefics3 have one network under two names.
    kinds = dict.fromkeys(("idefics3_vision", "idefics3", "smolvlm_vision"), _VISION)
    _, vision = subconfig(data, "vision_config", kinds)
    text = read_text(data, names, {"llama": LLAMA}, _NO_TEXT)
    return ModelConfig(
        vision=siglip_tower(vision, num_layers=vision.whole("num_hidden_layers"), final_norm=True),
        connector=ProjectionConfig(
            width=text.block.width,
            reduction="pixel_shuffle",
            reduction_factor=given.whole("scale_factor"),
            bias=False,
        ),
        text=text,
        fusion=SpliceConfig(placeholder_id=given.whole("image_token_id")),
    )


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Chat:
    image = image_token(words, Given(config, _TOP).whole("image_token_id"), "image_token", "<image>")
    end = "<end_of_utterance>\n"
    return Chat(
        start=(special_id(words, "bos_token", "<|im_start|>"),),
        picture=partial(_picture, image),
        turn=("User:", "", f"{end}Assistant:"),
        system_turn=("System: ", end),
    )


def _picture(image: str, layout: Layout) -> str:
    """Return the text for an image: its tiles row by row, each with its place, and the whole behind them."""
    seen = image * layout.tokens
    whole = f"{_AROUND}<global-img>{seen}{_AROUND}"
    if not layout.rows:
        return whole
    lines = (
        "".join(f"{_AROUND}<row_{row}_col_{column}>{seen}" for column in range(1, layout.columns + 1))
        for row in range(1, layout.rows + 1)
    )
    return "\n".join(lines) + "\n\n" + whole


FAMILY = Family(
    name="idefics3",
    config_from_hf=config_from_hf,
    rules=lambda config: RULES,
    prompting=_prompting,
    answers=True,
)
FAMILIES = {"Idefics3ForConditionalGeneration": FAMILY, "SmolVLMForConditionalGeneration": FAMILY}
