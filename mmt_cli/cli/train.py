"""`mmt train`: parse, call, print."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mmt_cli.cli import console, views
from mmt_cli.cli import train_options as given
from mmt_cli.cli.options import Debug, Device, Quiet, Seed, Threads
from mmt_cli.cli.train_curves import Curves
from mmt_cli.cli.train_findings import problems_listed, show_left_out
from mmt_cli.cli.train_progress import TrainProgress
from mmt_cli.cli.train_scores import ScoreProgress, scores_view
from mmt_cli.cli.train_stopping import TrainStopping
from mmt_cli.training.options import ScoreOptions, TrainOptions

if TYPE_CHECKING:
    from mmt_cli.training.distributed import World
    from mmt_cli.training.events import Event
    from mmt_cli.training.loop import Trainer


def train(
    data: given.Data = None,
    out: given.Out = None,
    val: given.Val = None,
    images: given.Images = None,
    max_errors: given.MaxErrors = None,
    shuffle_buffer: given.ShuffleBuffer = None,
    augment: given.Augment = None,
    preset: given.Preset = None,
    config: given.Config = None,
    init: given.Init = None,
    vision_init: given.VisionInit = None,
    tokenizer: given.Tokenizer = None,
    set_: given.Settings = None,
    epochs: given.Epochs = 10,
    steps: given.Steps = None,
    batch_size: given.BatchSize = 32,
    grad_accum: given.GradAccum = 1,
    lr: given.Lr = 5e-4,
    warmup: given.Warmup = 200,
    schedule: given.Schedule = "cosine",
    weight_decay: given.WeightDecay = 0.05,
    grad_clip: given.GradClip = 1.0,
    label_smoothing: given.LabelSmoothing = 0.1,
    dropout: given.Dropout = None,
    ema: given.Ema = None,
    lora: given.Lora = None,
    lora_targets: given.LoraTargets = None,
    precision: given.Precision = "float32",
    freeze: given.Freeze = "none",
    objective: given.Objective = "caption",
    sample_temperature: given.SampleTemperature = 1.0,
    cache_features: given.CacheFeatures = False,
    grad_checkpointing: given.GradCheckpointing = False,
    compile_: given.Compile = False,
    eval_only: given.EvalOnly = False,
    eval_every: given.EvalEvery = None,
    early_stop: given.EarlyStop = None,
    save_every: given.SaveEvery = None,
    keep: given.Keep = 1,
    keep_best: given.KeepBest = 1,
    resume: given.Resume = None,
    report_to: given.ReportTo = "none",
    parallel: given.Parallel = None,
    save_format: given.SaveFormat = "auto",
    save_dtype: given.SaveDtype = "float32",
    format_: given.Format = "text",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a captioning model on images with captions."""
    values = dict(locals())
    threads, quiet, eval_only, format_ = (values.pop(name) for name in ("threads", "quiet", "eval_only", "format_"))
    del values["debug"]
    if eval_only:
        _score(given.score_options(values), threads=threads, quiet=quiet, as_json=format_ == "json")
    else:
        _run(given.train_options(values), threads=threads, quiet=quiet)


def _score(options: ScoreOptions, *, threads: int | None, quiet: bool, as_json: bool) -> None:
    from mmt_cli.device import set_threads
    from mmt_cli.training.scoring import save, score

    set_threads(threads)
    with problems_listed(), ScoreProgress(quiet=quiet) as progress:
        scored = score(options, progress.show)
    show_left_out(scored.findings, quiet=quiet)
    try:
        save(scored, options)
    finally:  # what cannot be written can still be read
        views.show(scores_view(scored, options), "json" if as_json else "table")


def _run(options: TrainOptions, *, threads: int | None, quiet: bool) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's: each process would warn of what it is meant to do
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if quiet:
        os.environ.setdefault("WANDB_SILENT", "true")
    from mmt_cli.device import keep_freed_memory, set_threads
    from mmt_cli.training.distributed import joined
    from mmt_cli.training.events import Stopped

    if not options.grad_checkpointing:  # what is kept lies in pieces: recomputing then takes twice the memory
        keep_freed_memory()
    set_threads(threads)
    stopping = TrainStopping()
    with joined(options) as (world, placed):
        last = _last_event(placed, stopping, world, quiet=quiet)
    if isinstance(last, Stopped) and last.wished:
        stopping.end(f"step {last.step} is saved; go on with the same command and --resume auto")
    if world.leads:
        console.emit(f"{options.out}\n")


def _last_event(options: TrainOptions, stopping: TrainStopping, world: "World", *, quiet: bool) -> "Event":
    """Train, and return what the run ended with."""
    from mmt_cli.training.loop import Trainer

    with problems_listed() if world.leads else nullcontext():
        trainer = Trainer(options, stopping.wish, world)
    with stopping:
        [last] = deque(_shown(trainer, quiet=quiet) if world.leads else trainer.run(), maxlen=1)
    return last


def _shown(trainer: "Trainer", *, quiet: bool) -> Iterator["Event"]:
    """Run the trainer and show what happens."""
    from mmt_cli.training.events import Evaluated

    for findings in trainer.task.findings:
        show_left_out(findings, quiet=quiet)
    with TrainProgress(quiet=quiet) as progress:
        curves = Curves(trainer.options.out, quiet=quiet)
        for event in trainer.run():
            progress.show(event)
            if isinstance(event, Evaluated):
                curves.draw_now_and_then()
            yield event
        curves.draw()
