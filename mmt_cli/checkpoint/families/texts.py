"""The text part of chat models, a Llama, Qwen2 or Gemma: its `text_config` and the names of its tensors."""

from collections.abc import Collection, Mapping
from typing import Any

from mmt_cli.checkpoint.families.base import Given
from mmt_cli.checkpoint.families.chat import Defaults, subconfig
from mmt_cli.checkpoint.families.names import llama_layers
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.errors import ModelError, shown
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import TextConfig

_SHARED = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
}
LLAMA: Defaults = _SHARED | {
    "vocab_size": 32_000,
    "hidden_size": 4_096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2_048,
    "attention_bias": False,
    "mlp_bias": False,
}
QWEN2: Defaults = _SHARED | {
    "vocab_size": 151_936,
    "hidden_size": 4_096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4_096,
    "max_window_layers": 28,
}
GEMMA: Defaults = _SHARED | {
    "vocab_size": 256_000,
    "hidden_size": 3_072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8_192,
    "attention_bias": False,
}
HEAD = "lm_head.weight"


def read_text(
    config: Mapping[str, Any], names: Collection[str], kinds: Mapping[str, Defaults], absent: Defaults | None = None
) -> TextConfig:
    """Return the text part that `text_config` describes.

    Args:
        config: the content of `config.json`.
        names: of the tensors that the files hold; a head among them is the model's own, whatever the config says.
        kinds: the defaults of each `model_type` that the family's text can have.
        absent: what the family's class puts over these where there is no `text_config`.

    Raises:
        ModelError: a value that cannot be read, positions or windows that we do not have.
    """
    kind, given = subconfig(config, "text_config", kinds, absent)
    width, length = given.whole("hidden_size"), given.whole("max_position_embeddings")
    layers = given.whole("num_hidden_layers")
    if kind == "qwen2":
        _check_window(given, layers, length)
    attention_bias = kind != "qwen2" and given.flag("attention_bias")
    return TextConfig(
        vocab_size=given.whole("vocab_size"),
        max_length=length,
        positions="none",
        embedding_scale=width**0.5 if kind == "gemma" else 1.0,
        block=BlockConfig(
            width=width,
            num_heads=given.whole("num_attention_heads"),
            num_kv_heads=_whole_or_none(given, "num_key_value_heads"),
            head_dim=_whole_or_none(given, "head_dim"),
            mlp_width=given.whole("intermediate_size"),
            norm_kind="rmsnorm_plus_one" if kind == "gemma" else "rmsnorm",
            norm_eps=given.real("rms_norm_eps"),
            activation=given.activation("hidden_act"),
            gated=True,
            qkv_bias=kind == "qwen2" or attention_bias,
            out_bias=attention_bias,
            mlp_bias=kind == "llama" and given.flag("mlp_bias"),
            rope="1d",
            rope_theta=_rope_theta(given),
        ),
        num_layers=layers,
        head="own" if any(name.endswith(HEAD) for name in names) or _untied(config, given) else "tied",
    )


def _untied(config: Mapping[str, Any], given: Given) -> bool:
    """Say whether both configs deny that the head is the embedding; where it is, older files leave that to either."""
    name = "tie_word_embeddings"
    return config.get(name) is False and given.get(name) is False


def text_rules(theirs: str, head: str) -> Rules:
    """Return the rules for a text part whose names begin with `theirs`, and for its head's weight."""
    return (
        Rule(theirs + "embed_tokens.weight", "text.tokens.weight"),
        *llama_layers(theirs + "layers.{i}.", "blocks.{i}."),
        Rule(theirs + "norm.weight", "head.norm.weight"),
        Rule(head, "head.projection.weight"),
    )


def _whole_or_none(given: Given, name: str) -> int | None:
    return None if given.get(name) is None else given.whole(name)


def _rope_theta(given: Given) -> float:
    """Return the base of the rotary positions; before 5.0 it stood beside `rope_scaling`, now in `rope_parameters`.

    Raises:
        ModelError: positions are scaled. `dynamic` scales none within the model's context, and beyond we never go.
    """
    name = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    rope = given.part(name, {"rope_theta": given.get("rope_theta"), "type": "default"})
    rope.only("type" if rope.get("rope_type") is None else "rope_type", "default", "dynamic")
    return rope.real("rope_theta")


def _check_window(given: Given, layers: int, length: int) -> None:
    """Raise ModelError where a layer sees less than the whole context."""
    if not given.flag("use_sliding_window") or given.whole("sliding_window") >= length:
        return
    types = given.get("layer_types")
    if types is not None and not isinstance(types, list):
        raise ModelError(f"no list of layers (text_config.layer_types {shown(types)}, {layers} layers); mend it")
    slides = given.whole("max_window_layers") < layers if types is None else "sliding_attention" in types
    if slides:
        window = given.whole("sliding_window")
        raise ModelError(
            f"sliding windows are not supported here (text_config.sliding_window {window}, context {length}); "
            "use a checkpoint without"
        )
