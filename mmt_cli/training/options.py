"""What a training run is asked to do. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmt_cli.errors import UsageError, shown

Precision = Literal["float32", "bfloat16", "float16"]
Stored = Literal["float32", "bfloat16", "float16"]
SaveFormat = Literal["auto", "mmt", "hf"]
Freeze = Literal["none", "vision", "text"]
Schedule = Literal["cosine", "linear", "constant"]
Parallel = Literal["ddp", "fsdp"]
ReportTo = Literal["none", "tensorboard", "wandb"]
Objective = Literal["caption", "caption+contrastive", "masked", "language", "scst"]
AUGMENTATIONS = ("crop", "flip", "colour")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One run of `mmt train`.

    Lengths of time are optimizer steps; batch sizes are images, or sentences where text alone is learned. `grad_accum`
    batches of each of the `processes` make a step.

    Raises:
        UsageError: a value out of bounds, or two that exclude each other.
    """

    data: tuple[str, ...]
    out: Path
    val: tuple[str, ...] = ()
    images: Path | None = None
    max_errors: str | None = None
    shuffle_buffer: int | None = None
    augment: tuple[str, ...] = ()
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
    schedule: Schedule = "cosine"
    grad_accum: int = 1
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    label_smoothing: float = 0.1
    dropout: float | None = None
    ema: float | None = None
    lora: int | None = None
    lora_targets: tuple[str, ...] = ()
    precision: Precision = "float32"
    freeze: Freeze = "none"
    cache_features: bool = False
    grad_checkpointing: bool = False
    compile: bool = False
    objective: Objective = "caption"
    sample_temperature: float = 1.0
    eval_every: int | None = None
    early_stop: int | None = None
    save_every: int | None = None
    keep: int = 1
    keep_best: int = 1
    resume: str | None = None
    report_to: ReportTo = "none"
    log_every: int = 10
    save_format: SaveFormat = "auto"
    save_dtype: Stored = "float32"
    device: str = "auto"
    parallel: Parallel | None = None
    processes: int = 1
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
        self._check_data()
        self._check_objective()
        self._check_adapters()
        if self.early_stop is not None and not self.val:
            raise UsageError(f"nothing tells when to stop (--early-stop {self.early_stop}, no --val); give --val")
        self._check_bounds()

    def _check_data(self) -> None:
        unknown = [kind for kind in self.augment if kind not in AUGMENTATIONS]
        if unknown:
            known = ", ".join(AUGMENTATIONS)
            raise UsageError(f"unknown change of images (--augment {shown(unknown[0])}, known: {known}); use those")
        endless = [kind for kind in self.augment if kind != "flip"]
        if endless and self.cache_features:
            raise UsageError(
                f"features are of images as they are and of their mirror images (--cache-features, --augment "
                f"{','.join(endless)}); leave one out"
            )
        if self.objective == "language" and self.augment:
            raise UsageError(
                f"no image is read (--objective language, --augment {','.join(self.augment)}); leave one out"
            )
        if self.objective == "language" and self.shuffle_buffer is not None:
            raise UsageError(
                f"sentences lie in memory (--objective language, --shuffle-buffer {self.shuffle_buffer}); leave one out"
            )

    def _check_bounds(self) -> None:
        bounds = {
            "epochs": (self.epochs, 0.0, 1e6),
            "steps": (1 if self.steps is None else self.steps, 1, 1e9),
            "shuffle-buffer": (1 if self.shuffle_buffer is None else self.shuffle_buffer, 1, 1e9),
            "batch-size": (self.batch_size, 1, 65_536),
            "lr": (self.lr, 0.0, 10.0),
            "warmup": (self.warmup, 0, 1e9),
            "weight-decay": (self.weight_decay, 0.0, 10.0),
            "grad-clip": (self.grad_clip, 1e-6, 1e6),
            "label-smoothing": (self.label_smoothing, 0.0, 0.99),
            "dropout": (0.0 if self.dropout is None else self.dropout, 0.0, 0.9),
            "grad-accum": (self.grad_accum, 1, 65_536),
            "sample-temperature": (self.sample_temperature, 0.01, 100.0),
            "ema": (0.0 if self.ema is None else self.ema, 0.0, 0.999999),
            "lora": (1 if self.lora is None else self.lora, 1, 65_536),
            "early-stop": (1 if self.early_stop is None else self.early_stop, 1, 1e9),
            "save-every": (1 if self.save_every is None else self.save_every, 1, 1e9),
            "keep": (self.keep, 1, 1e9),
            "keep-best": (self.keep_best, 0, 1e9),
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
        if self.objective == "scst" and self.init is None:
            raise UsageError(
                "random weights write nothing that one could score (--objective scst, no --init); "
                "train with --objective caption first, and give the result as --init"
            )
        if self.objective == "scst" and self.parallel == "fsdp":
            raise UsageError(
                "captions of different lengths would wait for each other (--objective scst, --parallel fsdp); "
                "use --parallel ddp"
            )
        if self.objective == "masked" and self.cache_features:
            raise UsageError("features are of whole images (--objective masked, --cache-features); leave one out")
        if self.objective == "language" and self.cache_features:
            raise UsageError("no image is read (--objective language, --cache-features); leave one out")
        if self.objective == "language" and self.freeze == "text":
            raise UsageError("nothing is left to train (--objective language, --freeze text); leave one out")

    def _check_adapters(self) -> None:
        if self.lora is None and self.lora_targets:
            raise UsageError(
                f"no adapters to place (--lora-targets {self.lora_targets[0]}, no --lora); give --lora RANK"
            )
        if self.lora is not None and self.objective in ("caption+contrastive", "masked"):
            raise UsageError(
                f"adapters alone are trained, and this objective adds a new part (--lora {self.lora}, "
                f"--objective {self.objective}); use --objective caption"
            )

    @property
    def step_size(self) -> int:
        """Images or sentences that one optimizer step learns from."""
        return self.batch_size * self.grad_accum * self.processes

    def steps_an_epoch(self, examples: int) -> int:
        """Return how many optimizer steps see each of this many images or sentences once."""
        whole, rest = divmod(examples, self.batch_size * self.processes)
        batches = whole + (rest >= self.processes)  # a smaller rest joins the last batch, as `plan` has it
        return max(1, math.ceil(batches / self.grad_accum))

    def total_steps(self, examples: int) -> int:
        """Return how many optimizer steps the run takes over this many images or sentences an epoch."""
        return self.steps or max(1, round(self.epochs * self.steps_an_epoch(examples)))


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """One run of `mmt train --eval-only`: a trained model of any kind, and what it is scored on."""

    model: str
    val: tuple[str, ...]
    out: Path | None = None
    images: Path | None = None
    max_errors: str | None = None
    tokenizer: str | None = None
    batch_size: int = 32
    device: str = "auto"
    dtype: Precision = "float32"
