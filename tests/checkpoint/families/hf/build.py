"""`build` makes one small model of a family with strong weights, tokenizer and image processor, and saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from hf import PROMPTS, captioners, chats
from hf.built import Built
from hf.images import photos
from hf.parts import Parts, Settings
from hf.reference import prepare
from hf.strong import let_some_end, silence, strengthen


def build(family: str, folder: Path, seed: int = 0, **changes: Any) -> Built:
    """Build and save a model.

    Args:
        family: one of `hf.FAMILIES`.
        folder: where it goes; made if needed.
        seed: of the weights.
        changes: settings of the text part's config, or as `vision={...}`, `text={...}` and `top={...}`, of any part's.
    """
    top, text, vision = (dict(changes.pop(part, {})) for part in ("top", "text", "vision"))
    parts = _BUILDERS[family](text | changes, vision, top)
    model = parts.model.eval().requires_grad_(False)
    strengthen(model, seed)
    for key, value in parts.generation.items():
        setattr(model.generation_config, key, value)
    built = Built(family, folder, model, parts.tokenizer, parts.image_processor)
    head = parts.head or model.get_output_embeddings()
    silence(head, getattr(model.config, "image_token_id", None))
    let_some_end(model, head, parts.end, [_batch(built, prompt) for prompt in PROMPTS[family]], seed)
    model.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    parts.image_processor.save_pretrained(folder)  # preprocessor_config.json, as older versions wrote
    _write_processor(folder, parts)
    return built


def opened(family: str, folder: Path) -> Built:
    """Load a folder with transformers, at float32 and with the PIL image processor."""
    kind = getattr(transformers, _CLASSES[family])
    model = kind.from_pretrained(folder, dtype="float32").eval().requires_grad_(False)
    _compute_positions(model)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return Built(family, folder, model, AutoTokenizer.from_pretrained(folder), processor)


def _compute_positions(model: PreTrainedModel) -> None:
    """Compute TrOCR's sinusoidal positions again: 5.24 leaves them on the meta device, and the loaded model fails."""
    for module in model.modules():
        if type(module).__name__ == "TrOCRSinusoidalPositionalEmbedding":
            module.weights = module.get_embedding(*module.weights.shape, module.padding_idx)


def _batch(built: Built, prompt: str | None) -> dict[str, torch.Tensor]:
    """Make one batch of pictures that are alike in size, so that their texts are as long."""
    each = [prepare(built, image.resize((75, 50)), prompt).model for image in photos(8, seed=99)]
    return {key: torch.cat([model[key] for model in each]) for key in each[0]}


def _write_processor(folder: Path, parts: Parts) -> None:
    if isinstance(parts.processor, str):
        image = json.loads(parts.image_processor.to_json_string())
        body = {"image_processor": image, "processor_class": parts.processor, **parts.settings}
        (folder / "processor_config.json").write_text(json.dumps(body, indent=2) + "\n")
    elif parts.processor is not None:
        pieces = {"image_processor": parts.image_processor, "tokenizer": parts.tokenizer}
        parts.processor(**pieces, **parts.settings).save_pretrained(folder)


_BUILDERS: dict[str, Callable[[Settings, Settings, Settings], Parts]] = {
    "git": captioners.git,
    "blip": captioners.blip,
    "blip-vqa": captioners.blip_answers,
    "vit-gpt2": captioners.vit_gpt2,
    "trocr": captioners.trocr,
    "trocr-vit": captioners.trocr_vit,
    "smolvlm": chats.smolvlm,
    "idefics3": chats.idefics3,
    "llava": chats.llava,
    "llava-siglip": chats.llava_siglip,
    "paligemma": chats.paligemma,
    "internvl": chats.internvl,
    "florence2": chats.florence2,
}
_CLASSES = {
    "git": "GitForCausalLM",
    "blip": "BlipForConditionalGeneration",
    "blip-vqa": "BlipForQuestionAnswering",
    "vit-gpt2": "VisionEncoderDecoderModel",
    "trocr": "VisionEncoderDecoderModel",
    "trocr-vit": "VisionEncoderDecoderModel",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava-siglip": "LlavaForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "florence2": "Florence2ForConditionalGeneration",
}
