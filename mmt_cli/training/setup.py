"""What a run starts from: model, tokenizer and preprocessing, new or from a checkpoint."""

import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.families import efficientnet_lite
from mmt_cli.checkpoint.load import load_vision
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device
from mmt_cli.errors import ConfigError, UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.contrastive import ContrastiveHead
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.image_config import ConvTowerConfig
from mmt_cli.model.presets import changed, preset, with_dropout
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Row, encode_captions, tidy
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.origin import check_learnable, ties_words

TOKENIZER_SIZE = 4_000  # entries learned from the captions unless the config asks for fewer
WORDS_FROM = 20_000  # images whose captions teach a new model its words, at equal distances in the data
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
        captioner = Captioner.load(
            options.init, device=str(device), dtype="float32", tokenizer=options.tokenizer, trainable=True
        )
        config = needed(_with_dropout(_retied(captioner), options))
        captioner.model = _trainable(captioner.model, config)
        captioner.preprocessing = captioner.preprocessing.without_split()
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
        config, origin = changed(_read_toml(options.config), options.settings), f"--config {options.config}"
    else:
        name = options.preset or DEFAULT_PRESET
        config, origin = preset(name, options.settings), f"--preset {name}"
    check_learnable(config, options.objective, origin)
    some = captions[:: max(1, len(captions) // WORDS_FROM)]
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(options.tokenizer)
    else:
        size = min(config.text.vocab_size, TOKENIZER_SIZE)
        tokenizer = train_tokenizer((tidy(caption) for image in some for caption in image), size)
    config = needed(_with_dropout(_with_vocabulary(config, tokenizer.vocab_size), options))
    model = MultimodalTransformer(config)
    initialise(model)
    if model.head.projection.bias is not None:
        start, length = (tokenizer.bos_id,), config.text.max_length
        rows = encode_captions(some, tokenizer, length, start=start, end_id=tokenizer.eos_id)
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
        return GenerationOptions(num_beams=3, end_token_ids=end, stop_loops=True)
    # Without a cache each beam would read everything again. And a single readout learns one word a caption and step:
    # early on it knows little more than that the end and the full stop are the most frequent tokens.
    return GenerationOptions(min_new_tokens=5, repetition_penalty=1.3, end_token_ids=end, stop_loops=True)


def _with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    """Return the config with the tokenizer's vocabulary: rows that no token reaches would never be trained.

    A placeholder that is the last entry comes behind it, or it would be one of the words.
    """
    behind = isinstance(config.fusion, SpliceConfig) and config.fusion.placeholder_id is None
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=size + behind))


def _with_dropout(config: ModelConfig, options: TrainOptions) -> ModelConfig:
    """Return the config with the dropout rate that was asked for, if one was."""
    return config if options.dropout is None else with_dropout(config, options.dropout)


def _retied(captioner: Captioner) -> ModelConfig:
    """Return the model's config, its head tied where the checkpoint means it and holds the one matrix twice.

    Trained apart they would no longer be what `config.json` says, and older transformers would drop one of them.
    """
    config, source = captioner.model.config, captioner.source
    head, tokens = captioner.model.head.projection.weight, captioner.model.text.tokens.weight
    foreign = source is not None and not source.family.native
    if source is None or not foreign or config.text.head == "tied" or not ties_words(source.raw_config):
        return config
    same = head.shape == tokens.shape and torch.equal(head, tokens)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, head="tied")) if same else config


def _trainable(model: MultimodalTransformer, config: ModelConfig) -> MultimodalTransformer:
    """Return a model of this config with the weights of one of another, which loses them; a head it lacks is random.

    The weights are copied one by one, so that they lie in memory twice for a moment alone: what was loaded may be a
    view of its file.
    """
    with torch.device("meta"):
        trainable = MultimodalTransformer(config)
    given = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    device = next(model.parameters()).device
    model.to("meta")
    state = {name: given.pop(name).clone() for name in trainable.own_state() if name in given}
    if trainable.contrastive is not None and model.contrastive is None:
        head = ContrastiveHead(width=config.text.block.width, shared_width=trainable.contrastive.image.out_features)
        nn.init.xavier_uniform_(head.image.weight)
        nn.init.xavier_uniform_(head.text.weight)
        state |= {f"contrastive.{name}": tensor.to(device) for name, tensor in head.state_dict().items()}
    assert state.keys() == trainable.own_state().keys(), trainable.own_state().keys() ^ state.keys()
    trainable.load_state_dict(state, assign=True, strict=False)
    trainable.tie()
    return trainable


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
