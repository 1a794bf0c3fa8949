"""The models that are measured: loaded as users load them, presets included, with words for those that have none."""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.workload import image_places
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import UsageError
from mmt_cli.inputs.tokenizer import BOS, EOS, PAD, Tokenizer
from mmt_cli.inputs.tokenizer_build import Recipe
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise

_SPECIAL = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is ready to be measured.

    Attributes:
        captioner: the model with all that goes with it.
        reference: what another process loads it by; None where it lies in memory alone, or has no words of its own.
    """

    captioner: Captioner
    reference: str | None


@contextmanager
def opened(reference: str, options: BenchOptions) -> Iterator[Subject]:
    """Load a model; a preset gets the weights that training would start from.

    A preset that captions is written to a temporary folder and loaded from there, so that whatever loading does to make
    a model fast is done to presets, too.

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
        UsageError: device or dtype do not exist here, settings without a preset, the text is too long for the model.
    """
    config = referenced_preset(reference, options.settings)
    if config is not None:
        _check_lengths(options, config)
    with tempfile.TemporaryDirectory(prefix="mmt-bench-") as folder:
        if config is None:
            subject = _loaded(reference, options)
        elif options.phase == "train":
            subject = Subject(captioner=_fresh(config, options), reference=None)
        else:
            _write(Path(folder), config, options)
            subject = _loaded(folder, options)
        _check_lengths(options, subject.captioner.model.config)
        yield subject
    del subject
    gc.collect()


def _loaded(reference: str, options: BenchOptions) -> Subject:
    dtype = "float32" if options.phase == "train" else options.dtype
    captioner = Captioner.load(
        reference, device=options.device, dtype=dtype, hub=options.hub, quantize=options.quantize
    )
    speaks = captioner.tokenizer is not None
    if captioner.tokenizer is None:
        captioner.tokenizer = made_up_words(captioner.model.config.text.vocab_size)
    return Subject(captioner=captioner, reference=reference if speaks else None)


def _write(folder: Path, config: ModelConfig, options: BenchOptions) -> None:
    save_checkpoint(
        folder,
        _model(config, options.seed),
        tokenizer=made_up_words(config.text.vocab_size),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(),
        card="Random weights.\n",
        dtype=resolve_dtype(options.dtype, resolve_device(options.device)),
    )


def _fresh(config: ModelConfig, options: BenchOptions) -> Captioner:
    return Captioner(
        model=_model(config, options.seed).to(resolve_device(options.device)),
        tokenizer=made_up_words(config.text.vocab_size),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(),
    )


def _model(config: ModelConfig, seed: int) -> MultimodalTransformer:
    torch.manual_seed(seed)
    model = MultimodalTransformer(config)
    initialise(model)
    return model


def made_up_words(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with a word for every token of a model without one, so that its texts can be written out."""
    tokens = [*_SPECIAL.values(), *(f"word{number}" for number in range(len(_SPECIAL), vocab_size))][:vocab_size]
    data: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "unk_token": PAD,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }
    return Tokenizer(Recipe(data=data, added=(), names=_SPECIAL, clean_up=False))


def _check_lengths(options: BenchOptions, config: ModelConfig) -> None:
    for case in options.cases(""):
        texts = [(config, options.text_length(case))]
        if config.prompt_encoder is not None:
            texts.append((config.of_prompt_encoder, case.prompt_tokens))
        for reader, length in texts:
            image, limit = len(image_places(reader)), reader.text.max_length
            if image + length > limit:
                among = f", {image} of it the image's" if image else ""
                raise UsageError(
                    f"the text is too long (--prompt-tokens {case.prompt_tokens} and --gen-tokens {case.gen_tokens}, "
                    f"the model's context is {limit}{among}); lower one of them"
                )
