"""The README of a checkpoint: what it was made of, how, how good it is, and on what terms."""

from dataclasses import dataclass
from pathlib import Path

from mmt_cli import __version__
from mmt_cli.training.evaluate import TITLES
from mmt_cli.training.findings import Findings
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a run before it begins."""

    options: TrainOptions
    data: Findings  # of a look through the training data
    val: Findings  # and through the validation data

    def text(self, progress: Progress) -> str:
        """Return data, recipe, figures and terms of the run as far as it is."""
        options = self.options
        sections = {
            "Training data": [f"- {Path(name).name}" for name in options.data] + _counts(self.data),
            "Recipe": _recipe(options, progress.step),
            "Figures": self._figures(progress),
            "Terms": _terms(options),
        }
        body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
        made = f"A captioning model trained with `mmt train` (mmt {__version__})."
        return f"# {options.out.resolve().name}\n\n{made}\n\n{body}\n"

    def _figures(self, progress: Progress) -> list[str]:
        if progress.scored != progress.step or not progress.figures:
            return ["- not evaluated"]
        names = ", ".join(Path(name).name for name in self.options.val)
        lines = [f"On the validation data ({names}; {self.val.counts}), with 95 % intervals where they are known:", ""]
        for name, value in progress.figures.items():
            low_high = progress.intervals.get(name)
            interval = f" ({low_high[0]:.2f} to {low_high[1]:.2f})" if low_high else ""
            lines.append(f"- {TITLES.get(name, name)}: {value:.2f}{interval}")
        return lines


def _counts(findings: Findings) -> list[str]:
    left_out = [f"- {findings.left_out_line}"] if findings.left_out_line else []
    return [f"- {findings.counts} in all", *left_out]


def _recipe(options: TrainOptions, step: int) -> list[str]:
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
        "largest gradient": options.grad_clip,
        "label smoothing": options.label_smoothing,
        "dropout": options.dropout,
        "moving average of the weights": options.ema,
        "augmentation": ", ".join(options.augment) or None,
        "shuffle buffer": options.shuffle_buffer,
        "precision": options.precision,
        "seed": options.seed,
        **options.settings,
    }
    return [f"- {key}: {value}" for key, value in recipe.items() if value is not None]


def _terms(options: TrainOptions) -> list[str]:
    """Return whose terms hold for the weights; what they say, only their owners know."""
    terms = ["- The terms of the training data hold, for images and captions alike."]
    if options.init is not None:
        terms.append(f"- So do those of {options.init}, which the training started from.")
    if options.vision_init is not None:
        terms.append(f"- So do those of {options.vision_init.name}, which the image tower started from.")
    return terms
