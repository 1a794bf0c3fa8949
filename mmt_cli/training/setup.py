"""What a run starts from: model, tokenizer and preprocessing, new or from a checkpoint."""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.families import efficientnet_lite
from mmt_cli.checkpoint.load import default_preprocessing, load_vision
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ConfigError, UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.image_config import ConvTowerConfig
from mmt_cli.model.presets import changed, preset, with_dropout
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import encode_captions, tidy
from mmt_cli.training.data import Example
from mmt_cli.training.options import TrainOptions

TOKENIZER_SIZE = 4_000  # entries learned from the captions unless the config asks for fewer
DEFAULT_PRESET = "mini"


def build(options: TrainOptions, examples: Sequence[Example], device: torch.device) -> Captioner:
    """Return the captioner to train, in float32: `--init`'s, or a new one that fits the data.

    Raises:
        UsageError: preset, config or settings cannot be built.
        ModelError: `--init`, `--tokenizer` or `--vision-init` cannot be loaded.
    """
    if options.init is not None:
        captioner = Captioner.load(options.init, device=str(device), dtype="float32", tokenizer=options.tokenizer)
        captioner.model.requires_grad_(True)
    else:
        captioner = _new(options, examples, device)
    captioner.encode_prompt(None)  # a checkpoint without a tokenizer fails here, before the run
    if options.vision_init is not None:
        _load_vision(captioner.model, options.vision_init)
    return captioner


def _new(options: TrainOptions, examples: Sequence[Example], device: torch.device) -> Captioner:
    if options.config is not None:
        config = changed(_read_toml(options.config), options.settings)
    else:
        config = preset(options.preset or DEFAULT_PRESET, options.settings)
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(options.tokenizer)
    else:
        size = min(config.text.vocab_size, TOKENIZER_SIZE)
        tokenizer = train_tokenizer((tidy(c) for example in examples for c in example.captions), size)
    # The vocabulary is the tokenizer's: rows that no token reaches would never be trained.
    text = dataclasses.replace(config.text, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, text=text)
    if options.dropout is not None:
        config = with_dropout(config, options.dropout)
    torch.manual_seed(options.seed)
    model = MultimodalTransformer(config)
    initialise(model)
    if model.head.projection.bias is not None:
        _start_from_frequencies(
            model.head.projection.bias, encode_captions(examples, tokenizer, config.text.max_length)
        )
    return Captioner(
        model=model.to(device),
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(config),
        generation=_default_generation(config, tokenizer),
    )


def _start_from_frequencies(bias_V: Tensor, captions: Sequence[Sequence[Sequence[int]]]) -> None:
    """Set the head's bias to each token's log frequency, which would otherwise take the first hundreds of steps."""
    tokens = torch.tensor([token for rows in captions for row in rows for token in row[1:]])
    counts_V = torch.bincount(tokens, minlength=len(bias_V)) + 1
    with torch.no_grad():
        bias_V.copy_((counts_V / counts_V.sum()).log())


def _default_generation(config: ModelConfig, tokenizer: Tokenizer) -> GenerationOptions:
    """Return how a new model writes unless told otherwise."""
    end = (tokenizer.eos_id,)
    if config.cacheable:
        return GenerationOptions(num_beams=3, end_token_ids=end)
    # Without a cache each beam would read everything again. And a single readout learns one word a caption and step:
    # early on it knows little more than that the end and the full stop are the most frequent tokens.
    return GenerationOptions(min_new_tokens=5, repetition_penalty=1.3, end_token_ids=end)


def _with_dropout(model: MultimodalTransformer, dropout: float, device: torch.device) -> MultimodalTransformer:
    """Return the same model built with another dropout rate."""
    rebuilt = MultimodalTransformer(with_dropout(model.config, dropout)).to(device)
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt


def _read_toml(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"the config cannot be read ({path}, {str(error)[:80]}); give a TOML file") from error
    except ConfigError as error:
        raise UsageError(f"{path}: {error}") from error


def _load_vision(model: MultimodalTransformer, path: Path) -> None:
    if not isinstance(model.config.vision, ConvTowerConfig):
        kind = model.config.vision.kind
        raise UsageError(f"no weights for this tower (--vision-init {path}, vision.kind {kind}); leave the option out")
    load_vision(model, path, efficientnet_lite.RULES)
