"""Builders of the captioners: GIT, BLIP, ViT-GPT2 and TrOCR. Each takes settings of the text part, tower and top."""

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf import tokens
from hf.parts import TEXT_EPS, Parts, Settings, clip_sizes, cropping, roberta, square


def git(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build GIT."""
    tokenizer = tokens.wordpiece()
    vision = clip_sizes() | vision
    config = transformers.GitConfig(
        vision_config=vision,
        **_post_norm_text()
        | {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        | text
        | top,
    )
    return Parts(
        model=transformers.GitForCausalLM(config),
        tokenizer=tokenizer,
        image_processor=cropping(vision["image_size"]),
        end=tokenizer.sep_token_id,
        processor=transformers.GitProcessor,
        generation={},
    )


def blip(text: Settings, vision: Settings, top: Settings, answers: bool = False) -> Parts:
    """Build BLIP for captions, or for `answers` to questions."""
    tokenizer = tokens.wordpiece()
    vision = clip_sizes() | {"hidden_act": "gelu"} | vision
    # The real tokenizer lacks the token that begins a caption, so the vocabulary is two larger.
    numbers = {"vocab_size": len(tokenizer) + 2, "bos_token_id": len(tokenizer)}
    text = _post_norm_text() | numbers | text
    if answers:
        vision["hidden_size"] = text["hidden_size"]  # cross-attention to the image and to the question share a width
        vision["num_attention_heads"] = text["num_attention_heads"] + 1
    config = transformers.BlipConfig(text_config=text, vision_config=vision, **top)
    kind = transformers.BlipForQuestionAnswering if answers else transformers.BlipForConditionalGeneration
    model = kind(config)
    size = vision["image_size"]
    return Parts(
        model=model,
        tokenizer=tokenizer,
        image_processor=BlipImageProcessorPil(size={"height": size, "width": size}),
        end=tokenizer.sep_token_id,
        processor=transformers.BlipProcessor,
        head=model.text_decoder.cls.predictions.decoder,
        generation={},
    )


def blip_answers(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build BLIP for questions."""
    return blip(text, vision, top, answers=True)


def vit_gpt2(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build ViT-GPT2, whose parts differ in width."""
    end = "<|endoftext|>"
    tokenizer = tokens.wrapped(tokens.byte_level([], [end]), bos_token=end, eos_token=end, unk_token=end, pad_token=end)
    number = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer),
        "n_positions": 64,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 3,
        "n_inner": 80,
        "layer_norm_epsilon": TEXT_EPS,
        "bos_token_id": number,
        "eos_token_id": number,
        "add_cross_attention": True,
        "is_decoder": True,
    } | text
    encoder = transformers.ViTConfig(**clip_sizes() | {"hidden_act": "gelu"} | vision)
    special = {"decoder_start_token_id": number, "eos_token_id": number, "pad_token_id": number, "bos_token_id": number}
    model = _encoder_decoder(encoder, transformers.GPT2Config(**text), top)
    return Parts(
        model=model,
        tokenizer=tokenizer,
        image_processor=ViTImageProcessorPil(size=square(encoder.image_size)),
        end=number,
        processor=None,
        head=model.decoder.lm_head,
        generation=special,
    )


def trocr(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build TrOCR with a DeiT tower, learned positions and an embedding norm."""
    tokenizer = roberta([])
    encoder = transformers.DeiTConfig(**clip_sizes() | {"hidden_act": "gelu"} | vision)
    processor = DeiTImageProcessorPil(size=square(encoder.image_size), do_center_crop=False)
    return _trocr_parts(tokenizer, encoder, processor, text, top)


def trocr_vit(text: Settings, vision: Settings, top: Settings) -> Parts:
    """Build TrOCR with a ViT tower, sinusoidal positions and scaled embeddings."""
    encoder = transformers.ViTConfig(**clip_sizes() | {"hidden_act": "gelu", "qkv_bias": False} | vision)
    processor = ViTImageProcessorPil(size=square(encoder.image_size))
    switches = {
        "use_learned_position_embeddings": False,
        "layernorm_embedding": False,
        "scale_embedding": True,
        "activation_function": "relu",
    }
    return _trocr_parts(roberta([]), encoder, processor, switches | text, top)


def _trocr_parts(tokenizer: Any, encoder: Any, processor: Any, text: Settings, top: Settings) -> Parts:
    text = {
        "vocab_size": len(tokenizer),
        "d_model": 48,
        "decoder_layers": 3,
        "decoder_attention_heads": 3,
        "decoder_ffn_dim": 80,
        "max_position_embeddings": 64,
        "cross_attention_hidden_size": encoder.hidden_size,
        "is_decoder": True,
        "add_cross_attention": True,
    } | text
    model = _encoder_decoder(encoder, transformers.TrOCRConfig(**text), top)
    return Parts(
        model=model,
        tokenizer=tokenizer,
        image_processor=processor,
        end=tokenizer.eos_token_id,
        processor=transformers.TrOCRProcessor,
        head=model.decoder.output_projection,
        generation={"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
    )


def _encoder_decoder(encoder: Any, decoder: Any, top: Settings) -> PreTrainedModel:
    config = transformers.VisionEncoderDecoderConfig(
        encoder=encoder.to_dict(),
        decoder=decoder.to_dict(),
        decoder_start_token_id=decoder.eos_token_id,
        pad_token_id=decoder.pad_token_id if decoder.pad_token_id is not None else decoder.eos_token_id,
        eos_token_id=decoder.eos_token_id,
        **top,
    )
    return transformers.VisionEncoderDecoderModel(config)


def _post_norm_text() -> dict[str, Any]:
    return {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
        "layer_norm_eps": TEXT_EPS,
    }
