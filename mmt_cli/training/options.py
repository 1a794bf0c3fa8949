"""What a training run is asked to do. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmt_cli.errors import UsageError

Precision = Literal["float32", "bfloat16"]
Stored = Literal["float32", "bfloat16", "float16"]
SaveFormat = Literal["auto", "mmt", "hf"]
Freeze = Literal["none", "vision", "text"]
Objective = Literal["caption", "caption+contrastive", "masked", "language"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One run of `mmt train`.

    Lengths of time are optimizer steps; batch sizes are images, or sentences where text alone is learned.

    Raises:
        UsageError: a value out of bounds, or two that exclude each other.
    """

    data: tuple[str, ...]
    out: Path
    val: tuple[str, ...] = ()
    preset: str | None = None
    config: Path | None = None
    init: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    vision_init: Path | None = None
    tokenizer: str | None = None
    epochs: float = 10
    steps: int | None = None
    batch_size: int = 32
    lr: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    label_smoothing: float = 0.1
    dropout: float | None = None
    precision: Precision = "float32"
    freeze: Freeze = "none"
    cache_features: bool = False
    grad_checkpointing: bool = False
    objective: Objective = "caption"
    eval_every: int | None = None
    log_every: int = 10
    save_format: SaveFormat = "auto"
    save_dtype: Stored = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        origins = {"--preset": self.preset, "--config": self.config, "--init": self.init}
        given = [name for name, value in origins.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"two origins for one model ({given[0]} and {given[1]}); give one of them")
        if self.settings and self.init is not None:
            raise UsageError("a trained model keeps its config (--set and --init); leave one out")
        if self.save_format == "hf" and self.init is None:
            origin = f"{given[0]} {origins[given[0]]}" if given else "no --init"
            raise UsageError(
                f"no Hugging Face family has this model (--save-format hf, {origin}); "
                "start from a Hugging Face checkpoint with --init, or leave --save-format out"
            )
        if self.cache_features and self.freeze != "vision":
            raise UsageError(
                f"features change while the tower trains (--cache-features, --freeze {self.freeze}); freeze it"
            )
        self._check_objective()
        bounds = {
            "epochs": (self.epochs, 0.0, 1e6),
            "steps": (1 if self.steps is None else self.steps, 1, 1e9),
            "batch-size": (self.batch_size, 1, 65_536),
            "lr": (self.lr, 0.0, 10.0),
            "warmup": (self.warmup, 0, 1e9),
            "weight-decay": (self.weight_decay, 0.0, 10.0),
            "grad-clip": (self.grad_clip, 1e-6, 1e6),
            "label-smoothing": (self.label_smoothing, 0.0, 0.99),
            "dropout": (0.0 if self.dropout is None else self.dropout, 0.0, 0.9),
            "eval-every": (1 if self.eval_every is None else self.eval_every, 1, 1e9),
            "log-every": (self.log_every, 1, 1e9),
        }
        for name, (value, low, high) in bounds.items():
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"--{name} is out of bounds ({value}, allowed {low} to {high}); change it")

    def _check_objective(self) -> None:
        if self.objective == "caption+contrastive" and self.batch_size == 1:
            raise UsageError(
                "one image has nothing to be told from (--objective caption+contrastive, --batch-size 1); enlarge it"
            )
        if self.objective == "masked" and self.cache_features:
            raise UsageError("features are of whole images (--objective masked, --cache-features); leave one out")
        if self.objective == "language" and self.cache_features:
            raise UsageError("no image is read (--objective language, --cache-features); leave one out")
        if self.objective == "language" and self.freeze == "text":
            raise UsageError("nothing is left to train (--objective language, --freeze text); leave one out")

    def total_steps(self, examples: int) -> int:
        """Return how many optimizer steps the run takes over this many images or sentences an epoch."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * math.ceil(examples / self.batch_size)))
