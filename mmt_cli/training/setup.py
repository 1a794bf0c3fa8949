"""What a run starts from: model, tokenizer and preprocessing, new or from a checkpoint."""

import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.families import efficientnet_lite
from mmt_cli.checkpoint.load import default_preprocessing, load_vision
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device
from mmt_cli.errors import ConfigError, UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.model.config import ModelConfig, SpliceConfig
from mmt_cli.model.image_config import ConvTowerConfig
from mmt_cli.model.presets import changed, preset, with_dropout
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Row, encode_captions, tidy
from mmt_cli.training.options import TrainOptions

TOKENIZER_SIZE = 4_000  # entries learned from the captions unless the config asks for fewer
DEFAULT_PRESET = "mini"


def _unchanged(config: ModelConfig) -> ModelConfig:
    return config


def build(
    options: TrainOptions,
    captions: Sequence[Sequence[str]],
    needed: Callable[[ModelConfig], ModelConfig] = _unchanged,
) -> Captioner:
    """Return the captioner to train, in float32: `--init`'s, or a new one that fits the data.

    Args:
        options: of the run.
        captions: the data's, of each image.
        needed: changes the config to what the objective needs; parts that it adds start from random weights.

    Raises:
        UsageError: preset, config or settings cannot be built.
        ModelError: `--init`, `--tokenizer` or `--vision-init` cannot be loaded.
    """
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    if options.init is not None:
        captioner = Captioner.load(options.init, device=str(device), dtype="float32", tokenizer=options.tokenizer)
        captioner.model = _rebuilt(captioner.model, needed(_with_dropout(captioner.model.config, options)), device)
    else:
        captioner = _new(options, captions, needed, device)
    captioner.encode_prompt(None)  # a checkpoint without a tokenizer fails here, before the run
    if options.vision_init is not None:
        _load_vision(captioner.model, options.vision_init)
    return captioner


def _new(
    options: TrainOptions,
    captions: Sequence[Sequence[str]],
    needed: Callable[[ModelConfig], ModelConfig],
    device: torch.device,
) -> Captioner:
    if options.config is not None:
        config = changed(_read_toml(options.config), options.settings)
    else:
        config = preset(options.preset or DEFAULT_PRESET, options.settings)
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(options.tokenizer)
    else:
        size = min(config.text.vocab_size, TOKENIZER_SIZE)
        tokenizer = train_tokenizer((tidy(caption) for image in captions for caption in image), size)
    config = needed(_with_dropout(_with_vocabulary(config, tokenizer.vocab_size), options))
    model = MultimodalTransformer(config)
    initialise(model)
    if model.head.projection.bias is not None:
        rows = encode_captions(captions, tokenizer, config.text.max_length)
        _start_from_frequencies(model.head.projection.bias, rows)
    return Captioner(
        model=model.to(device),
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(config),
        generation=_default_generation(config, tokenizer),
    )


def _start_from_frequencies(bias_V: Tensor, rows: Sequence[Sequence[Row]]) -> None:
    """Set the head's bias to each token's log frequency, which would otherwise take the first hundreds of steps."""
    tokens = torch.tensor([token for image in rows for row in image for token in row[1:]])
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


def _with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    """Return the config with the tokenizer's vocabulary: rows that no token reaches would never be trained.

    A placeholder that is the last entry comes behind it, or it would be one of the words.
    """
    behind = isinstance(config.fusion, SpliceConfig) and config.fusion.placeholder_id is None
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=size + behind))


def _with_dropout(config: ModelConfig, options: TrainOptions) -> ModelConfig:
    """Return the config with the dropout rate that was asked for, if one was."""
    return config if options.dropout is None else with_dropout(config, options.dropout)


def _rebuilt(model: MultimodalTransformer, config: ModelConfig, device: torch.device) -> MultimodalTransformer:
    """Return a trainable model of this config with the weights of one of another; what that lacks is random."""
    rebuilt = MultimodalTransformer(config)
    initialise(rebuilt)
    found = rebuilt.load_state_dict(model.state_dict(), strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return rebuilt.to(device)


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
