"""Builders of the models that answer: SmolVLM, Idefics3, LLaVA, PaliGemma, InternVL, Florence-2; as `captioners`."""

from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from hf import tokens
from hf.parts import (
    IMAGENET,
    VISION_EPS,
    Parts,
    Settings,
    clip_sizes,
    cropping,
    llama_text,
    roberta,
    siglip_sizes,
    square,
)


def smolvlm(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build SmolVLM as SmolVLM2 names it; its head is its own."""
    return _tiled(text, vision, top, newer=True)


def idefics3(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build Idefics3, as SmolVLM-256M names itself; its head is tied."""
    return _tiled(text, vision, top, newer=False)


def _tiled(text: Settings, vision: Settings, top: Settings, newer: bool) -> Parts:
    """SmolVLM (`newer`) and Idefics3: the same network and tiling under two names."""
    plain = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tiles = ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))]
    trailing = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", *tiles]
    roles = {"bos_token": plain[1], "eos_token": "<end_of_utterance>", "unk_token": plain[0], "pad_token": plain[2]}
    tokenizer = tokens.wrapped(tokens.byte_level(plain, trailing), **roles)
    end = tokenizer.eos_token_id
    vision = siglip_sizes() | vision
    text = llama_text(len(tokenizer)) | {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": 2} | text
    special = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "scale_factor": 2}
    kinds = {
        True: (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
        False: (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    }
    config_kind, kind, image_processor = kinds[newer]
    special |= {"tie_word_embeddings": not newer}
    config = config_kind(text_config={"model_type": "llama"} | text, vision_config=vision, **special | top)
    size = vision["image_size"]
    image = {"size": {"longest_edge": 3 * size if newer else 2 * size}, "max_image_size": {"longest_edge": size}}
    seen = (size // vision["patch_size"] // config.scale_factor) ** 2
    return Parts(
        model=kind(config),
        tokenizer=tokenizer,
        image_processor=image_processor(**image),
        end=end,
        # SmolVLM's own class needs num2words and a video processor; its text for images is the same.
        processor="SmolVLMProcessor" if newer else transformers.Idefics3Processor,
        settings={"image_seq_len": seen},
        generation={"bos_token_id": 0, "eos_token_id": end, "pad_token_id": 2},
    )


def llava(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build LLaVA 1.5: CLIP's layer before the last, and Llama."""
    plain = tokens.sentencepiece(["<unk>", "<s>", "</s>"], ["<image>", "<pad>"], prefix=True)
    tokenizer = tokens.wrapped(
        tokens.begin(plain, "<s>"), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    vision = {"model_type": "clip_vision_model"} | clip_sizes() | vision
    text = {"model_type": "llama"} | llama_text(len(tokenizer)) | text
    special = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "vision_feature_layer": -2}
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, **special | top)
    )
    return Parts(
        model=model,
        tokenizer=tokenizer,
        image_processor=cropping(vision["image_size"]),
        end=2,
        processor=transformers.LlavaProcessor,
        settings=_llava_settings(model, class_tokens=1),
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id},
    )


def llava_siglip(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build LLaVA with SigLIP, whose last layer comes without the final norm, and Qwen2."""
    tokenizer = _qwen(["<image>"])
    end = tokenizer.eos_token_id
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False} | siglip_sizes() | vision
    text = {"model_type": "qwen2", "eos_token_id": end} | llama_text(len(tokenizer) + 5) | text
    special = {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, **special | top)
    )
    return Parts(
        model=model,
        tokenizer=tokenizer,
        image_processor=SiglipImageProcessorPil(size=square(vision["image_size"])),
        end=end,
        processor=transformers.LlavaProcessor,
        settings=_llava_settings(model, class_tokens=0),
        generation={"eos_token_id": [end, tokenizer.pad_token_id], "pad_token_id": tokenizer.pad_token_id},
    )


def _llava_settings(model: PreTrainedModel, class_tokens: int) -> dict[str, Any]:
    return {
        "patch_size": model.config.vision_config.patch_size,
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
        "num_additional_image_tokens": class_tokens,
    }


def paligemma(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build PaliGemma."""
    plain = tokens.sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>"], ["<image>"], prefix=False)
    tokenizer = tokens.wrapped(
        tokens.begin(plain, "<bos>"),
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False} | siglip_sizes() | vision
    size = vision["image_size"]
    image_processor = SiglipImageProcessorPil(size=square(size), resample=3)
    image_processor.image_seq_length = (size // vision["patch_size"]) ** 2
    # The processor adds the tokens of places and segments to the tokenizer, so it comes before the vocabulary's size.
    transformers.PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    text = (
        {"model_type": "gemma"}
        | llama_text(len(tokenizer) + 3)
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20, "hidden_act": "gelu_pytorch_tanh"}
        | text
    )
    special = {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "projection_dim": text["hidden_size"],
        "hidden_size": text["hidden_size"],
        "vocab_size": text["vocab_size"],
    }
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, **special | top)
    return Parts(
        model=transformers.PaliGemmaForConditionalGeneration(config),
        tokenizer=tokenizer,
        image_processor=image_processor,
        end=1,
        processor=transformers.PaliGemmaProcessor,
        generation={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
    )


def internvl(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build InternVL."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _qwen(list(named.values()), extra_special_tokens=named)
    end = tokenizer.eos_token_id
    vision = {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
        "intermediate_size": 72,
        "attention_bias": True,
        "image_size": [32, 32],
        "patch_size": [8, 8],
        "layer_norm_eps": VISION_EPS,
    } | vision
    text = {"model_type": "qwen2", "eos_token_id": end} | llama_text(len(tokenizer) + 5) | text
    special = {"image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), "tie_word_embeddings": False}
    special["image_seq_length"] = (vision["image_size"][0] // vision["patch_size"][0] // 2) ** 2
    config = transformers.InternVLConfig(text_config=text, vision_config=vision, **special | top)
    size = {"height": vision["image_size"][0], "width": vision["image_size"][1]}
    return Parts(
        model=transformers.InternVLForConditionalGeneration(config),
        tokenizer=tokenizer,
        image_processor=GotOcr2ImageProcessorPil(size=size, **IMAGENET),
        end=end,
        processor="InternVLProcessor",  # its class needs a video processor, which needs torchvision
        settings={"image_seq_length": special["image_seq_length"]},
        generation={"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id},
    )


def florence2(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build Florence-2."""
    tokenizer = roberta(["<image>"], extra_special_tokens={"image_token": "<image>"})
    vision = {
        "depths": [1, 1, 3, 1],
        "embed_dim": [8, 16, 24, 40],
        "num_heads": [1, 2, 3, 5],
        "num_groups": [2, 4, 3, 5],
        "window_size": 5,
        "mlp_ratio": 2.0,
        "max_position_embeddings": 10,
        "max_temporal_embeddings": 7,
        "projection_dim": 48,
    } | vision
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer) + 5,
        "d_model": 48,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 72,
        "max_position_embeddings": 128,
        "activation_function": "gelu",
        "forced_eos_token_id": 2,
    } | text
    special = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>")}
    config = transformers.Florence2Config(text_config=text, vision_config=vision, **special | top)
    image_processor = CLIPImageProcessorPil(size=square(96), crop_size=square(96), do_center_crop=False, **IMAGENET)
    image_processor.image_seq_length = (96 // 32) ** 2 + 1
    return Parts(
        model=transformers.Florence2ForConditionalGeneration(config),
        tokenizer=tokenizer,
        image_processor=image_processor,
        end=2,
        processor=transformers.Florence2Processor,
        generation={
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "decoder_start_token_id": 2,
            "forced_bos_token_id": 0,
            "forced_eos_token_id": 2,
            "no_repeat_ngram_size": 3,
        },
    )


def _qwen(trailing: list[str], **roles: Any) -> PreTrainedTokenizerFast:
    plain = tokens.byte_level([], ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *trailing])
    return tokens.wrapped(plain, eos_token="<|im_end|>", pad_token="<|endoftext|>", **roles)
