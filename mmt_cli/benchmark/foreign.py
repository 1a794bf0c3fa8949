"""The same weights in transformers: presets of its shapes written for it, and checkpoints of its families loaded by it.

The library is imported only here, and only when something is compared with it.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.image_config import PatchTowerConfig, ProjectionConfig

Inputs = dict[str, Tensor]
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
_SPELT_OUT = ("head_dim", "cuts_patches")
_BLIP_START, _BLIP_END = -2, 102  # the last token but one begins a caption, as in the published vocabulary


def library() -> Any:
    """Return transformers, quiet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        found = importlib.import_module("transformers")
    except ImportError as error:
        what = f"transformers is not installed (--against transformers, {shown(str(error))})"
        raise UsageError(f"{what}; pip install 'mmt-cli[transformers]'") from error
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def export(name: str, config: ModelConfig, folder: Path, seed: int) -> None:
    """Write a preset as a folder of transformers with random weights of its own.

    Raises:
        UsageError: no model of transformers has this shape.
    """
    write = _EXPORTS.get(name)
    if write is None:
        what = f"no counterpart in transformers (preset:{name}, there is one of {', '.join(_EXPORTS)})"
        raise UsageError(f"{what}; compare one of these, or a checkpoint of its own")
    torch.manual_seed(seed)
    write(library(), config).save_pretrained(folder)


def check_export(name: str, config: ModelConfig, captioner: Captioner) -> None:
    """Check that what was written is the preset.

    Raises:
        UsageError: it was changed so that transformers has no such model.
    """
    if _settings(captioner.model.config) != _settings(config):
        raise UsageError(f"no counterpart in transformers (preset:{name} with these --set); change sizes alone")


def _settings(config: ModelConfig) -> list[Any]:
    """Return what two configs of one model have in common: some sizes may be left to others or be spelt out."""

    def spelt(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: spelt(value) for key, value in node.items() if key not in _SPELT_OUT}

    assert isinstance(config.vision, PatchTowerConfig)
    return [spelt(config.to_json()), config.text.block.head_width, config.vision.block.head_width]


class Foreign:
    """A checkpoint in transformers.

    Attributes:
        name: of the library, and its version.
    """

    def __init__(self, captioner: Captioner) -> None:
        """Load the checkpoint that a captioner has.

        Raises:
            UsageError: transformers has no such model, or none that is compared.
            ModelError: it cannot load the checkpoint.
        """
        transformers = library()
        self.name = f"transformers {transformers.__version__}"
        source = captioner.source
        family = "unsaved" if source is None else source.family.name
        if source is None or family not in _INPUTS:
            what = f"no counterpart in transformers ({captioner.name} of family {family}, known: {', '.join(_INPUTS)})"
            raise UsageError(f"{what}; compare a checkpoint of one of these")
        self._inputs = _INPUTS[family]
        self._device = captioner.device
        named = source.raw_config.get("architectures")
        kind = getattr(transformers, str(named[0]), None) if isinstance(named, list) and named else None
        if kind is None:
            raise UsageError(f"transformers has no such model (architectures {shown(named)}); compare another")
        try:
            model = kind.from_pretrained(source.folder.path, dtype=captioner.dtype)
        except (OSError, ValueError, RuntimeError) as error:
            what = f"transformers cannot load the checkpoint ({source.folder.path}, {shown(str(error))})"
            raise ModelError(f"{what}; compare another") from error
        self._model = model.to(captioner.device).eval().requires_grad_(False)

    def generate(self, pixels_BCHW: Tensor, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Write as many tokens behind each prompt, the likeliest at each step, and return these."""
        ids_BT = torch.tensor([list(ids) for ids in prompts], device=self._device)
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        with torch.inference_mode():
            found_BT = self._model.generate(
                **self._inputs(pixels_BCHW, ids_BT), **length, do_sample=False, num_beams=1, max_length=None
            )
        tokens: list[list[int]] = found_BT[:, -new_tokens:].tolist()
        return tokens

    def starting(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the prompts as `generate` takes them: of some families it wants the token first that begins a text."""
        first = None
        if self._inputs is _blip_inputs:
            first = self._model.config.text_config.bos_token_id
        elif self._inputs is _encoder_decoder_inputs:
            first = self._model.generation_config.decoder_start_token_id
        return [list(ids) if first is None else [first, *ids[1:]] for ids in prompts]


def _decoder_inputs(pixels_BCHW: Tensor, ids_BT: Tensor) -> Inputs:
    return {"pixel_values": pixels_BCHW, "input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


def _blip_inputs(pixels_BCHW: Tensor, ids_BT: Tensor) -> Inputs:
    # `generate` overwrites the first token and drops the last.
    return _decoder_inputs(pixels_BCHW, torch.cat([ids_BT, ids_BT[:, -1:]], dim=1))


def _encoder_decoder_inputs(pixels_BCHW: Tensor, ids_BT: Tensor) -> Inputs:
    return {"pixel_values": pixels_BCHW, "decoder_input_ids": ids_BT}


def _tiled_inputs(pixels_BCHW: Tensor, ids_BT: Tensor) -> Inputs:
    return _decoder_inputs(pixels_BCHW[:, None], ids_BT)


_INPUTS: Mapping[str, Callable[[Tensor, Tensor], Inputs]] = {
    "git": _decoder_inputs,
    "blip": _blip_inputs,
    "vision-encoder-decoder": _encoder_decoder_inputs,
    "idefics3": _tiled_inputs,
    "llava": _decoder_inputs,
    "internvl": _decoder_inputs,
}


def _git(transformers: Any, config: ModelConfig) -> Any:
    text = config.text
    settings = _text(text.block) | {
        "vocab_size": text.vocab_size,
        "num_hidden_layers": text.num_layers,
        "max_position_embeddings": text.max_length,
        "eos_token_id": min(_BLIP_END, text.vocab_size - 1),
        "tie_word_embeddings": text.head == "tied",
    }
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=_tower(config), **settings))


def _blip(transformers: Any, config: ModelConfig) -> Any:
    text = config.text
    settings = _text(text.block) | {
        "vocab_size": text.vocab_size,
        "num_hidden_layers": text.num_layers,
        "max_position_embeddings": text.max_length,
        "encoder_hidden_size": config.vision.width,
        "bos_token_id": text.vocab_size + _BLIP_START,
        "eos_token_id": min(_BLIP_END, text.vocab_size - 1),
        "sep_token_id": min(_BLIP_END, text.vocab_size - 1),
    }
    whole = transformers.BlipConfig(vision_config=_tower(config), text_config=settings)
    return transformers.BlipForConditionalGeneration(whole)


def _vit_gpt2(transformers: Any, config: ModelConfig) -> Any:
    text, block = config.text, config.text.block
    end = text.vocab_size - 1
    decoder = transformers.GPT2Config(
        vocab_size=text.vocab_size,
        n_positions=text.max_length,
        n_embd=block.width,
        n_layer=text.num_layers,
        n_head=block.num_heads,
        n_inner=block.mlp_width,
        activation_function=_activation(block),
        layer_norm_epsilon=block.norm_eps,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    encoder = transformers.ViTConfig(**_tower(config))
    whole = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    whole.decoder_start_token_id = whole.eos_token_id = whole.pad_token_id = end
    return transformers.VisionEncoderDecoderModel(config=whole)


def _smolvlm(transformers: Any, config: ModelConfig) -> Any:
    text, block = config.text, config.text.block
    settings = _text(block) | {
        "model_type": "llama",
        "vocab_size": text.vocab_size,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": block.kv_heads,
        "max_position_embeddings": text.max_length,
        "rms_norm_eps": block.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": block.rope_theta},
        "pad_token_id": 2,
    }
    assert isinstance(config.connector, ProjectionConfig)
    whole = transformers.Idefics3Config(
        text_config=settings,
        vision_config=_tower(config),
        image_token_id=config.placeholder_id,
        scale_factor=config.connector.reduction_factor,
        tie_word_embeddings=text.head == "tied",
        pad_token_id=2,
    )
    return transformers.Idefics3ForConditionalGeneration(whole)


def _text(block: BlockConfig) -> dict[str, Any]:
    return {
        "hidden_size": block.width,
        "num_attention_heads": block.num_heads,
        "intermediate_size": block.mlp_width,
        "hidden_act": _activation(block),
        "layer_norm_eps": block.norm_eps,
    }


def _tower(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    assert isinstance(vision, PatchTowerConfig)
    sizes = {"image_size": vision.image_size, "patch_size": vision.patch_size, "num_hidden_layers": vision.num_layers}
    return _text(vision.block) | sizes


def _activation(block: BlockConfig) -> str:
    return _ACTIVATIONS.get(block.activation, block.activation)


_EXPORTS: Mapping[str, Callable[[Any, ModelConfig], Any]] = {
    "git-base": _git,
    "blip-base": _blip,
    "vit-gpt2": _vit_gpt2,
    "smolvlm-256m": _smolvlm,
}
