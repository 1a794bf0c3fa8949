"""What a family's builder gives, and the settings that several families share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf import tokens

Settings = dict[str, Any]
# Far larger than real ones and unlike each other, so that one mistaken for the other shows.
VISION_EPS = 0.02
TEXT_EPS = 0.05
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(kw_only=True)
class Parts:
    """An unsaved model with what reads and writes for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any
    end: int  # the id that ends a caption
    # The processor's class, its name where it needs packages that tests lack, None where the family has none.
    processor: Callable[..., Any] | str | None
    settings: dict[str, Any] = field(default_factory=dict)  # of the processor
    head: Any = None  # where the model does not say which it is
    generation: dict[str, Any]


def square(size: int) -> dict[str, int]:
    """Return a size that is stretched to, whatever the picture's."""
    return {"height": size, "width": size}


def cropping(size: int) -> CLIPImageProcessorPil:
    """Return CLIP's: the shorter edge to a size, then the middle."""
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square(size))


def clip_sizes() -> dict[str, Any]:
    """Return the settings of a tower with a class token."""
    return {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
        "intermediate_size": 72,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": VISION_EPS,
    }


def siglip_sizes() -> dict[str, Any]:
    """Return the settings of a tower without one."""
    return clip_sizes() | {"intermediate_size": 56}


def llama_text(vocabulary: int) -> dict[str, Any]:
    """Return the settings of a text part with grouped heads and rotary positions."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "intermediate_size": 80,
        "max_position_embeddings": 1024,
        "rms_norm_eps": TEXT_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }


def roberta(trailing: list[str], **roles: Any) -> PreTrainedTokenizerFast:
    """Return RoBERTa's and BART's tokenizer; more special tokens go last."""
    plain = tokens.byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>", *trailing])
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return tokens.wrapped(tokens.enclose(plain), cls_token="<s>", sep_token="</s>", **ends, **roles)
