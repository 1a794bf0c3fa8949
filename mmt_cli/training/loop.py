"""The training loop: a generator of events, so that whoever runs it decides what to show."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mmt_cli.device import DTYPES
from mmt_cli.errors import DivergedError
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch, batches
from mmt_cli.training.evaluate import Scores
from mmt_cli.training.images import Prepared
from mmt_cli.training.memory import checkpoint_blocks
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.origin import check_origin
from mmt_cli.training.state import RunFolder
from mmt_cli.training.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is set up."""

    steps: int
    unit: str  # what one example is called, in the plural
    train_count: int
    val_count: int
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer step is done; the losses are means since the last logged step."""

    step: int
    loss: float  # in nats
    parts: Mapping[str, float]  # by name, where the loss has several
    lr: float
    per_s: float  # examples
    logged: bool


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The validation set is scored; `best` when this is the best so far, now saved."""

    step: int
    scores: Scores
    best: bool


Event = Started | Prepared | Stepped | Evaluated


class Trainer:
    """One run, from options to a checkpoint folder."""

    def __init__(self, options: TrainOptions) -> None:
        check_origin(options)
        self.options = options
        self.task = TASKS[options.objective](options)
        self.captioner = self.task.captioner
        self.model = self.captioner.model
        _freeze(self.model, options.freeze, self.task.untrained)
        _set_modes(self.model, options)
        if options.grad_checkpointing:
            checkpoint_blocks(self.model)
        self.optimizer = _optimizer(self.task.objective, options)
        self.total_steps = options.total_steps(self.task.count)
        self.folder = RunFolder(options, self.captioner)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.best = -math.inf
        self.figures: dict[str, float] = {}

    def run(self) -> Iterator[Event]:
        """Train to the last step, yielding what happens.

        Raises:
            DivergedError: the loss or a gradient is NaN or infinite; the weights are those before that step.
            DataError: an image cannot be read.
        """
        options, task = self.options, self.task
        parameters = list(self.model.parameters())
        yield Started(
            steps=self.total_steps,
            unit=task.unit,
            train_count=task.count,
            val_count=task.val_count,
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
        )
        yield from task.prepare()
        eval_every = options.eval_every or max(1, math.ceil(task.count / options.batch_size))
        stream = batches(task.batch, task.count, batch_size=options.batch_size, seed=options.seed)
        losses: list[dict[str, float]] = []
        clock, seen = time.perf_counter(), 0
        for step in range(1, self.total_steps + 1):
            batch = next(stream)
            lr = learning_rate(step, options, self.total_steps)
            losses.append(self._step(batch, step, lr))
            seen += len(batch.keys)
            logged = step % options.log_every == 0 or step == self.total_steps
            parts = _means(losses)
            per_s = seen / (time.perf_counter() - clock)
            loss = parts.pop("loss")
            stepped = Stepped(step=step, loss=loss, parts=parts, lr=lr, per_s=per_s, logged=logged)
            if logged:
                figures = {"loss": loss, **parts, "lr": lr, f"{task.unit}_per_s": per_s}
                self.folder.log({"step": step, "kind": "train", **figures})
                losses.clear()
                clock, seen = time.perf_counter(), 0
            yield stepped
            if step % eval_every == 0 or step == self.total_steps:
                yield from self._checkpoint(step)
                clock, seen = time.perf_counter(), 0

    def _step(self, batch: Batch, step: int, lr: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        objective, dtype = self.task.objective, DTYPES[self.options.precision]
        with torch.autocast(self.captioner.device.type, dtype=dtype, enabled=dtype != torch.float32):
            losses = objective(batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), self.options.grad_clip)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(float(norm))):
            raise DivergedError(
                f"training diverged at step {step} (loss {values['loss']}, gradient norm {float(norm)}; "
                f"{self.task.unit} {', '.join(batch.keys[:3])} …); lower --lr, or start from {self.folder.folder}"
            )
        self.optimizer.step()
        return values

    def _checkpoint(self, step: int) -> Iterator[Event]:
        if self.task.val_count:
            scores = self.task.score()
            self.figures = dict(scores.figures)
            self.folder.log({"step": step, "kind": "eval", **self.figures})
            best = scores.rank > self.best
            if best:
                self.best = scores.rank
                self.folder.save_best(self.captioner, self.figures, step)
            self.folder.save_last(self.captioner, self.figures, step)
            yield Evaluated(step=step, scores=scores, best=best)
        else:
            self.folder.save_best(self.captioner, {}, step)
            self.folder.save_last(self.captioner, {}, step)


def learning_rate(step: int, options: TrainOptions, total_steps: int) -> float:
    """Return the rate of a step, counted from 1: linear warm-up to `lr`, then half a cosine down to zero."""
    warmup = min(options.warmup, total_steps // 2)
    if step <= warmup:
        return options.lr * step / warmup
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup + 1)))


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each loss."""
    return {name: sum(step[name] for step in losses) / len(losses) for name in losses[0]}


def _freeze(model: nn.Module, part: str, untrained: tuple[str, ...]) -> None:
    frozen = {"none": (), "vision": ("vision.",), "text": ("text.", "blocks.", "head.")}[part]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith((*frozen, *untrained)))


def _set_modes(model: MultimodalTransformer, options: TrainOptions) -> None:
    """Turn dropout on, but leave batch statistics that came with trained weights as they are.

    Batches here are far smaller than those the towers were trained with.
    """
    model.train()
    if options.freeze == "vision":
        model.vision.eval()
    if options.vision_init is not None or options.init is not None:
        for module in model.vision.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: norms, biases and single vectors stay free."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
