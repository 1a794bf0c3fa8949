"""From a model reference to what a captioner is made of."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mmt_cli.checkpoint.load import load_model, stored_dtype
from mmt_cli.checkpoint.parts import load_generation, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import HubOptions, Source, open_reference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.convnet_packing import pack_convolutions
from mmt_cli.model.int8 import quantise
from mmt_cli.model.packing import pack_linears
from mmt_cli.model.transformer import MultimodalTransformer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A checkpoint, loaded."""

    model: MultimodalTransformer
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    generation: GenerationOptions
    source: Source
    quantize: str | None


def load_parts(
    reference: str | Path,
    *,
    device: str,
    dtype: str,
    tokenizer: str | None,
    hub: HubOptions | None,
    quantize: str | None,
    trainable: bool,
) -> Parts:
    """Load a checkpoint; arguments and errors are those of `Captioner.load`."""
    on = resolve_device(device)
    if quantize is not None:
        _check_quantize(quantize, on, trainable=trainable)
    source = open_reference(reference, hub)
    stored = None if source.family.native else stored_dtype(source)
    model = load_model(source, device=on, dtype=resolve_dtype(dtype, on, stored))
    words = load_tokenizer(source, tokenizer)
    if source.family.native and words is not None and words.vocab_size > source.config.text.vocab_size:
        sizes = f"tokenizer {words.vocab_size} entries, model {source.config.text.vocab_size}"
        raise ModelError(f"tokenizer and model do not fit ({sizes}); use the tokenizer it was trained with")
    if quantize is not None:
        quantise(model)
    elif not trainable:
        pack_linears(model)
    if not trainable:
        pack_convolutions(model)
    return Parts(
        model=model,
        tokenizer=words,
        preprocessing=load_preprocessing(source),
        generation=load_generation(source),
        source=source,
        quantize=quantize,
    )


def _check_quantize(quantize: str, device: torch.device, *, trainable: bool) -> None:
    if quantize != "int8":
        raise UsageError(f"unknown kind of numbers (--quantize {quantize}); use int8, or leave the option out")
    if device.type != "cpu":
        raise UsageError(f"int8 is for processors (--quantize int8, --device {device}); use one of them alone")
    if trainable:
        raise UsageError("weights in 8 bits cannot be trained (quantize int8, trainable); choose one of them")
