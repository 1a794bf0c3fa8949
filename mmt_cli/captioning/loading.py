"""From a model reference to what a captioner is made of."""

from dataclasses import dataclass
from pathlib import Path

from mmt_cli.checkpoint.load import load_model, stored_dtype
from mmt_cli.checkpoint.parts import load_generation, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import HubOptions, Source, open_reference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import ModelError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.transformer import MultimodalTransformer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A checkpoint, loaded."""

    model: MultimodalTransformer
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    generation: GenerationOptions
    source: Source


def load_parts(
    reference: str | Path, *, device: str, dtype: str, tokenizer: str | None, hub: HubOptions | None
) -> Parts:
    """Load a checkpoint; arguments and errors are those of `Captioner.load`."""
    source = open_reference(reference, hub)
    on = resolve_device(device)
    stored = None if source.family.native else stored_dtype(source)
    model = load_model(source, device=on, dtype=resolve_dtype(dtype, on, stored))
    words = load_tokenizer(source, tokenizer)
    if source.family.native and words is not None and words.vocab_size > source.config.text.vocab_size:
        sizes = f"tokenizer {words.vocab_size} entries, model {source.config.text.vocab_size}"
        raise ModelError(f"tokenizer and model do not fit ({sizes}); use the tokenizer it was trained with")
    return Parts(
        model=model,
        tokenizer=words,
        preprocessing=load_preprocessing(source),
        generation=load_generation(source),
        source=source,
    )
