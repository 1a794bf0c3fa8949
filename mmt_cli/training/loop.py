"""The training loop: a generator of events, so that whoever runs it decides what to show.

R rows (captions), N image tokens, D width.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.device import DTYPES, resolve_device
from mmt_cli.errors import DivergedError
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch, batches, encode_captions
from mmt_cli.training.data import Example, open_dataset
from mmt_cli.training.evaluate import Evaluator, Scores
from mmt_cli.training.images import FeatureImages, Images, Prepared
from mmt_cli.training.memory import checkpoint_blocks
from mmt_cli.training.objectives import caption_loss
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.setup import build
from mmt_cli.training.state import RunFolder


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is set up."""

    steps: int
    train_images: int
    val_images: int
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer step is done; `loss` in nats is the mean since the last logged step."""

    step: int
    loss: float
    lr: float
    images_per_s: float
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
        self.options = options
        self.examples = open_dataset(options.data)
        self.val_examples: list[Example] = open_dataset(options.val) if options.val else []
        self.captioner: Captioner = build(options, self.examples, resolve_device(options.device))
        self.model = self.captioner.model
        images = FeatureImages if options.cache_features else Images
        self.images, self.val_images = (images(e, self.captioner) for e in (self.examples, self.val_examples))
        self.evaluator = Evaluator(self.val_examples) if self.val_examples else None
        _freeze(self.model, options.freeze)
        _set_modes(self.model, options)
        if options.grad_checkpointing:
            checkpoint_blocks(self.model)
        self.optimizer = _optimizer(self.model, options)
        self.total_steps = options.total_steps(len(self.examples))
        self.folder = RunFolder(options)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.best = -math.inf
        self.figures: dict[str, float] = {}

    def run(self) -> Iterator[Event]:
        """Train to the last step, yielding what happens.

        Raises:
            DivergedError: the loss or a gradient is NaN or infinite; the weights are those before that step.
            DataError: an image cannot be read.
        """
        parameters = list(self.model.parameters())
        yield Started(
            steps=self.total_steps,
            train_images=len(self.examples),
            val_images=len(self.val_examples),
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
        )
        yield from self.images.prepare()
        yield from self.val_images.prepare()
        assert self.captioner.tokenizer is not None
        rows = encode_captions(self.examples, self.captioner.tokenizer, self.model.config.text.max_length)
        options = self.options
        eval_every = options.eval_every or max(1, math.ceil(len(self.examples) / options.batch_size))
        stream = batches(rows, self.images.load, batch_size=options.batch_size, seed=options.seed)
        losses: list[float] = []
        clock, seen = time.perf_counter(), 0
        for step in range(1, self.total_steps + 1):
            batch = next(stream)
            lr = learning_rate(step, options, self.total_steps)
            losses.append(self._step(batch, step, lr))
            seen += len(batch.keys)
            logged = step % options.log_every == 0 or step == self.total_steps
            stepped = Stepped(
                step=step,
                loss=sum(losses) / len(losses),
                lr=lr,
                images_per_s=seen / (time.perf_counter() - clock),
                logged=logged,
            )
            if logged:
                figures = {"loss": stepped.loss, "lr": lr, "images_per_s": stepped.images_per_s}
                self.folder.log({"step": step, "kind": "train", **figures})
                losses.clear()
                clock, seen = time.perf_counter(), 0
            yield stepped
            if step % eval_every == 0 or step == self.total_steps:
                yield from self._checkpoint(step)
                clock, seen = time.perf_counter(), 0

    def _step(self, batch: Batch, step: int, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.model.config.cacheable:
            # One readout a row: five captions would read the image five times to learn five words.
            batch = batch.one_caption_each(self.generator)
        device = self.captioner.device
        dtype = DTYPES[self.options.precision]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            image = self.images.see(batch.images)[batch.image_R.to(device)]
            loss = caption_loss(
                self.model,
                image,
                batch.rows,
                label_smoothing=self.options.label_smoothing,
                generator=self.generator,
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise DivergedError(
                f"training diverged at step {step} (loss {value}, gradient norm {float(norm)}; images "
                f"{', '.join(batch.keys[:3])} …); lower --lr, or start from {self.folder.folder}"
            )
        self.optimizer.step()
        return value

    def _checkpoint(self, step: int) -> Iterator[Event]:
        if self.evaluator is not None:
            scores = self.evaluator.score(self.captioner, self.val_images.see_all)
            self.figures = scores.to_json()
            self.folder.log({"step": step, "kind": "eval", **self.figures})
            best = scores.cider > self.best
            if best:
                self.best = scores.cider
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


def _freeze(model: nn.Module, part: str) -> None:
    frozen = {"none": (), "vision": ("vision.",), "text": ("text.", "blocks.", "head.")}[part]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))


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
