"""The README of a checkpoint: what it was made of, how, how good it is, and on what terms."""

from collections.abc import Mapping
from pathlib import Path

from mmt_cli.training.options import TrainOptions


def model_card(options: TrainOptions, figures: Mapping[str, float], step: int) -> str:
    """Return the text: data, recipe, figures and terms of the run."""
    origin = options.init or (str(options.config) if options.config else f"preset {options.preset or 'mini'}")
    recipe = {
        "start": origin,
        "objective": options.objective,
        "vision weights": options.vision_init and options.vision_init.name,
        "frozen": options.freeze,
        "adapters": options.lora and f"LoRA of rank {options.lora}, merged",
        "steps": step,
        "batch size": options.step_size,
        "peak learning rate": options.lr,
        "warm-up steps": options.warmup,
        "schedule": options.schedule,
        "weight decay": options.weight_decay,
        "label smoothing": options.label_smoothing,
        "moving average of the weights": options.ema,
        "augmentation": ", ".join(options.augment) or None,
        "precision": options.precision,
        "seed": options.seed,
    }
    settings = [f"- {key}: {value}" for key, value in recipe.items() if value is not None]
    settings += [f"- {key}: {value}" for key, value in options.settings.items()]
    data = [f"- {Path(name).name}" for name in options.data]
    validation = ", ".join(Path(name).name for name in options.val)
    scores = [f"- {key}: {value:.2f}" for key, value in figures.items()] or ["- not evaluated"]
    sections = {
        "Training data": data,
        "Recipe": settings,
        f"Figures on the validation data{validation and f' ({validation})'}": scores,
        "Terms": _terms(options),
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return f"# {options.out.resolve().name}\n\nA captioning model trained with `mmt train`.\n\n{body}\n"


def _terms(options: TrainOptions) -> list[str]:
    """Return whose terms hold for the weights; what they say, only their owners know."""
    terms = ["- The terms of the training data hold, for images and captions alike."]
    if options.init is not None:
        terms.append(f"- So do those of {options.init}, which the training started from.")
    if options.vision_init is not None:
        terms.append(f"- So do those of {options.vision_init.name}, which the image tower started from.")
    return terms
