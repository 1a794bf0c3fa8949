"""What a run has to know of the checkpoint it starts from, and which it refuses, before any weight is read."""

from collections.abc import Mapping
from typing import Any

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.parts import load_tokenizer
from mmt_cli.checkpoint.reference import open_reference
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.training.objectives.masked import mask_token
from mmt_cli.training.options import Objective, TrainOptions

_TEXT_PARTS = ("decoder", "text_config")
# What stands between a family's prompt and its answer, where that is not nothing: "Assistant: A dog".
_BEFORE_ANSWER = {"idefics3": " "}


def check_origin(options: TrainOptions) -> None:
    """Raise where `--init` names a model that cannot be trained or written as asked.

    Raises:
        UsageError: it cannot.
        ModelError: there is no such model, its config is broken, or it has no tokenizer.
    """
    if options.init is None:
        return
    source = open_reference(options.init)
    family = f"--init {shown(options.init)} of family {source.family.name}"
    check_learnable(source.config, options.objective, family)
    if source.family.native:
        if options.save_format == "hf":
            raise UsageError(f"no Hugging Face family has this model (--save-format hf, {family}); leave it out")
        return
    if options.save_format == "mmt":
        raise UsageError(
            f"our format does not hold how this family is prompted (--save-format mmt, {family}); "
            "leave it out, and the result is a Hugging Face folder"
        )
    if options.tokenizer is not None:
        raise UsageError(
            f"a Hugging Face folder keeps its tokenizer (--tokenizer {shown(options.tokenizer)}, {family}); "
            "leave it out, and put missing files into the folder"
        )
    if options.objective == "language" and source.family.answers:
        raise UsageError(
            f"a model that answers writes nothing without a question (--objective language, {family}); "
            "use --objective caption"
        )
    if options.objective == "masked":
        words = load_tokenizer(source)
        if words is None:
            raise ModelError(f"no tokenizer ({family} has none, text needs one); put its files into the folder")
        mask_token(words)


def check_learnable(config: ModelConfig, objective: Objective, origin: str) -> None:
    """Raise UsageError for models that cannot learn the objective from images with captions alone.

    Args:
        config: of the model.
        objective: what is to be learned.
        origin: what messages call the model.
    """
    if config.prompt_encoder is not None:
        raise UsageError(
            f"an encoder reads a question, and captions have none ({origin}, --objective {objective}); "
            "start from a captioner such as git or blip"
        )
    if isinstance(config.fusion, SpliceConfig) and config.fusion.visibility == "prompt":
        raise UsageError(
            f"each word would see those that it shall learn to write ({origin}, fusion.visibility prompt); "
            "start from another family"
        )
    widths = config.image_width, config.text.block.width
    if objective == "caption+contrastive" and widths[0] != widths[1]:
        raise UsageError(
            f"images and texts are compared in one width (--objective {objective}, {origin}: image {widths[0]}, "
            f"text {widths[1]}); use --objective caption"
        )


def ties_words(config: Mapping[str, Any]) -> bool:
    """Say whether a Hugging Face config means token embedding and head to be one matrix, as is the default."""
    part = next((config[name] for name in _TEXT_PARTS if isinstance(config.get(name), Mapping)), config)
    name = "tie_word_embeddings"
    return bool(part.get(name, config.get(name, True)))


def before_answer(captioner: Captioner) -> str:
    """Return the text between what a model reads first and the caption that it shall write."""
    return "" if captioner.source is None else _BEFORE_ANSWER.get(captioner.source.family.name, "")
