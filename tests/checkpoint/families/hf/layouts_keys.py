"""Tensor names of other layouts, as rules from the names that transformers 5.24 saves: the first that fits is used."""

from typing import Any

import torch
from torch import Tensor

_VISION = (r"^vision_tower\.(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_tower.vision_model.\1.")
# 4.52 and later: one more `model.` before all but the head, which stands alone.
_WITH_MODEL = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)
_WITH_MODEL_VISION = (
    r"^vision_tower\.(embeddings|encoder|pre_layrnorm|post_layernorm)\.",
    r"model.vision_tower.vision_model.\1.",
)

HUB_KEYS: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    # 0: before 4.52 (llava-hf/llava-1.5-7b-hf); 1: 4.52 to 4.57; 2: as 1, without the tower's own prefix.
    "llava": (
        (_VISION,),
        (*_WITH_MODEL, _WITH_MODEL_VISION),
        (*_WITH_MODEL, (r"^vision_tower\.", "model.vision_tower.")),
    ),
    "paligemma": (
        (_VISION,),
        (*_WITH_MODEL, _WITH_MODEL_VISION),
        (*_WITH_MODEL, (r"^vision_tower\.", "model.vision_tower.")),
    ),
    # The tower is the family's own and has no prefix of its own.
    "internvl": ((*_WITH_MODEL, (r"^vision_tower\.", "model.vision_tower.")),),
}


def extra_tensors(family: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that older versions saved besides, which say nothing new."""
    return _EXTRA[family](tensors, config)


def _git(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    image = tensors["git.image_encoder.vision_model.embeddings.position_embedding.weight"]
    return {
        "git.embeddings.position_ids": torch.arange(config["max_position_embeddings"])[None],
        "git.image_encoder.vision_model.embeddings.position_ids": torch.arange(len(image))[None],
    }


def _blip(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    length = config["text_config"]["max_position_embeddings"]
    words = tensors["text_decoder.bert.embeddings.word_embeddings.weight"]
    extra = {
        "text_decoder.bert.embeddings.position_ids": torch.arange(length)[None],
        "text_decoder.cls.predictions.decoder.weight": words,
        "text_decoder.cls.predictions.decoder.bias": tensors["text_decoder.cls.predictions.bias"],
    }
    if any(name.startswith("text_encoder.") for name in tensors):
        extra["text_encoder.embeddings.position_ids"] = torch.arange(length)[None]
    return extra


def _gpt2(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    length = config["decoder"]["n_positions"]
    seen = torch.ones(length, length, dtype=torch.uint8).tril()[None, None]
    extra = {"decoder.lm_head.weight": tensors["decoder.transformer.wte.weight"]}
    for layer in range(config["decoder"]["n_layer"]):
        for name in ("attn", "crossattention"):
            extra[f"decoder.transformer.h.{layer}.{name}.bias"] = seen
            extra[f"decoder.transformer.h.{layer}.{name}.masked_bias"] = torch.tensor(-1e4)
    return extra


def _trocr(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    extra = {"decoder.output_projection.weight": tensors["decoder.model.decoder.embed_tokens.weight"]}
    if not config["decoder"]["use_learned_position_embeddings"]:
        extra["decoder.model.decoder.embed_positions._float_tensor"] = torch.zeros(1)
    return extra


_EXTRA = {"git": _git, "blip": _blip, "blip-vqa": _blip, "vit-gpt2": _gpt2, "trocr": _trocr}
