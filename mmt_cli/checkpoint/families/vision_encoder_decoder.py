"""VisionEncoderDecoder: a ViT or DeiT, and a GPT-2 (ViT-GPT2) or TrOCR's decoder that attends to it."""

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.bart import bart_block, bart_layers
from mmt_cli.checkpoint.families.base import ANY, Family, Given, start_id
from mmt_cli.checkpoint.families.names import WB, affine
from mmt_cli.checkpoint.families.towers import bert_block, vit_tower
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.prompt import Continuation
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig, TextConfig
from mmt_cli.model.fusion_config import CrossConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

_ENCODER = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_GPT2 = {
    "vocab_size": 50_257,
    "n_positions": 1_024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
_TROCR = {
    "vocab_size": 50_265,
    "d_model": 1_024,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4_096,
    "activation_function": "gelu",
    "max_position_embeddings": 512,
    "scale_embedding": False,
    "use_learned_position_embeddings": True,
    "layernorm_embedding": True,
    "pad_token_id": 1,
}

_VIT_LAYER = {
    "attention.attention.{query|key|value}": "attention.inner.qkv",
    "attention.output.dense": "attention.inner.out",
    "layernorm_before": "attention.norm",
    "intermediate.dense": "mlp.inner.up",
    "output.dense": "mlp.inner.down",
    "layernorm_after": "mlp.norm",
}
# As transformers has them in memory since 5.20, and so in state dicts that were saved by hand.
_VIT_LAYER_5 = {
    "attention.{q_proj|k_proj|v_proj}": "attention.inner.qkv",
    "attention.o_proj": "attention.inner.out",
    "layernorm_before": "attention.norm",
    "mlp.fc1": "mlp.inner.up",
    "mlp.fc2": "mlp.inner.down",
    "layernorm_after": "mlp.norm",
}
_VIT: Rules = (
    Rule("encoder.embeddings.{cls_token|distillation_token}", "vision.class_token"),
    Rule("encoder.embeddings.position_embeddings", "vision.positions"),
    *affine({"embeddings.patch_embeddings.projection": "embedding", "layernorm": "norm"}, "encoder.", "vision."),
    *affine(_VIT_LAYER, "encoder.encoder.layer.{i}.", "vision.blocks.{i}."),
    *affine(_VIT_LAYER_5, "encoder.layers.{i}.", "vision.blocks.{i}."),
    Rule(f"encoder.pooler.dense.{WB}", None),
    *affine({"enc_to_dec_proj": "connector.layers.0"}),
)
# A ViT has one token before its patches, so that there is nothing to join.
_CLASS_TOKEN = Rule("encoder.embeddings.cls_token", "vision.class_token")
_GPT2_LINEAR = {
    "attn.c_attn": "attention.inner.qkv",
    "attn.c_proj": "attention.inner.out",
    "crossattention.q_attn": "cross_attention.inner.q",
    "crossattention.c_attn": "cross_attention.inner.kv",
    "crossattention.c_proj": "cross_attention.inner.out",
    "mlp.c_fc": "mlp.inner.up",
    "mlp.c_proj": "mlp.inner.down",
}
_GPT2_NORMS = {"ln_1": "attention.norm", "ln_cross_attn": "cross_attention.norm", "ln_2": "mlp.norm"}
_H, _OURS = "decoder.transformer.h.{i}.", "blocks.{i}."
_GPT2_RULES: Rules = (
    Rule("decoder.transformer.wte.weight", "text.tokens.weight"),
    Rule("decoder.transformer.wpe.weight", "text.positions"),
    Rule(_H + "{attn|crossattention}.{bias|masked_bias}", None),  # causal masks
    *(Rule(f"{_H}{a}.weight", f"{_OURS}{b}.weight", transposed=True) for a, b in _GPT2_LINEAR.items()),
    *(Rule(f"{_H}{a}.bias", f"{_OURS}{b}.bias") for a, b in _GPT2_LINEAR.items()),
    *affine(_GPT2_NORMS, _H, _OURS),
    *affine({"decoder.transformer.ln_f": "head.norm"}),
    Rule("decoder.lm_head.weight", "head.projection.weight"),
)
_T = "decoder.model.decoder."
_TROCR_RULES: Rules = (
    Rule(_T + "embed_tokens.weight", "text.tokens.weight"),
    Rule(_T + "embed_positions.weight", "text.positions"),
    Rule(_T + "embed_positions._float_tensor", None),  # says where computed positions lie
    *affine({"layernorm_embedding": "text.norm"}, _T),
    *bart_layers(_T + "layers.{i}.", "blocks.{i}.", cross=True),
    Rule("decoder.output_projection.weight", "head.projection.weight"),
)


def _encoder(encoder: Given) -> PatchTowerConfig:
    encoder.only("model_type", "vit", "deit")
    deit = encoder.get("model_type") == "deit"
    block = bert_block(encoder, qkv_bias=encoder.flag("qkv_bias"))
    return vit_tower(encoder, block, class_token=True, distillation_token=deit, final_norm=True)


def _gpt2(decoder: Given, names: Collection[str]) -> TextConfig:
    decoder.only("scale_attn_weights", True)
    decoder.only("scale_attn_by_inverse_layer_idx", False)
    width = decoder.whole("n_embd")
    return TextConfig(
        vocab_size=decoder.whole("vocab_size"),
        max_length=decoder.whole("n_positions"),
        block=BlockConfig(
            width=width,
            num_heads=decoder.whole("n_head"),
            mlp_width=4 * width if decoder.get("n_inner") is None else decoder.whole("n_inner"),
            norm_eps=decoder.real("layer_norm_epsilon"),
            activation=decoder.activation("activation_function"),
        ),
        num_layers=decoder.whole("n_layer"),
        # One that is there is kept, whatever the config says: it may have been trained apart.
        head="own" if "decoder.lm_head.weight" in names else "tied",
    )


def _trocr(decoder: Given, names: Collection[str]) -> TextConfig:
    learned = decoder.flag("use_learned_position_embeddings")
    width = decoder.whole("d_model")
    return TextConfig(
        vocab_size=decoder.whole("vocab_size"),
        max_length=decoder.whole("max_position_embeddings"),
        positions="learned" if learned else "sinusoidal",
        position_offset=2 if learned else decoder.whole("pad_token_id") + 1,
        embedding_scale=math.sqrt(width) if decoder.flag("scale_embedding") else 1.0,
        embedding_norm=decoder.flag("layernorm_embedding"),
        block=bart_block(decoder, "decoder"),
        num_layers=decoder.whole("decoder_layers"),
        final_norm=False,
        head="own" if "decoder.output_projection.weight" in names else "tied",
    )


def config_from_hf(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Return the model that a `config.json` of type `vision-encoder-decoder` describes."""
    given = Given(data, {})
    kind = given.part("decoder", {}).get("model_type")
    if kind not in ("gpt2", "trocr"):
        raise ModelError(f"unknown decoder (decoder.model_type {shown(kind)}, known: gpt2, trocr); use one of these")
    decoder = given.part("decoder", _GPT2 if kind == "gpt2" else _TROCR)
    vision = _encoder(given.part("encoder", _ENCODER))
    text = _gpt2(decoder, names) if kind == "gpt2" else _trocr(decoder, names)
    width = text.block.width
    projects = vision.width != width and decoder.get("cross_attention_hidden_size") is None
    return ModelConfig(
        vision=vision,
        connector=ProjectionConfig(width=width) if projects else None,
        text=text,
        fusion=CrossConfig(),
    )


def _rules(config: ModelConfig) -> Rules:
    assert isinstance(config.vision, PatchTowerConfig)
    vision = _VIT if config.vision.distillation_token else (_CLASS_TOKEN, *_VIT[1:])
    return (*vision, *(_GPT2_RULES if config.text.block.norm == "pre" else _TROCR_RULES))


def _prompting(config: Mapping[str, Any], words: "Tokenizer") -> Continuation:
    return Continuation(start=(start_id(config, "decoder"),))


FAMILY = Family(
    name="vision-encoder-decoder",
    config_from_hf=config_from_hf,
    rules=_rules,
    prompting=_prompting,
    image_processor="ViTImageProcessor",
)
FAMILIES = {ANY: FAMILY}
