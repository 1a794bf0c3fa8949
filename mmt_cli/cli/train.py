"""`mmt train`: parse, call, print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mmt_cli.cli import console
from mmt_cli.cli.options import Debug, Device, Quiet, Seed, Threads, choice, real, text, whole
from mmt_cli.cli.train_progress import TrainProgress
from mmt_cli.errors import UsageError
from mmt_cli.training.options import TrainOptions

START, RECIPE, RUN = "Start from", "Recipe", "Run"


def train(
    data: Annotated[list[str], typer.Argument(metavar="DATA…", help="Tar shards, folders with .txt sidecars, .jsonl.")],
    out: Annotated[str, text("--out", "-o", metavar="DIR", help="Checkpoint folder to write.")],
    val: Annotated[list[str] | None, text("--val", metavar="DATA", help="Data to score on; may come again.")] = None,
    preset: Annotated[str | None, text("--preset", section=START, metavar="NAME", help="mini, tiny or seed.")] = None,
    config: Annotated[
        str | None, text("--config", section=START, metavar="FILE", help="Model configuration in TOML.")
    ] = None,
    init: Annotated[
        str | None, text("--init", section=START, metavar="MODEL", help="Trained model to go on from.")
    ] = None,
    vision_init: Annotated[
        str | None, text("--vision-init", section=START, metavar="FILE", help="Weights of the image tower alone.")
    ] = None,
    tokenizer: Annotated[
        str | None, text("--tokenizer", section=START, metavar="PATH", help="Tokenizer; else one is trained.")
    ] = None,
    set_: Annotated[
        list[str] | None, text("--set", section=START, metavar="KEY=VALUE", help="Change the preset; may come again.")
    ] = None,
    epochs: Annotated[float, real("--epochs", section=RECIPE, help="Times each image is seen.")] = 10,
    steps: Annotated[
        int | None, whole("--steps", minimum=1, section=RECIPE, help="Optimizer steps, instead of epochs.")
    ] = None,
    batch_size: Annotated[
        int, whole("--batch-size", "-b", minimum=1, section=RECIPE, help="Images a step, with all their captions.")
    ] = 32,
    lr: Annotated[float, real("--lr", section=RECIPE, help="Highest learning rate.")] = 5e-4,
    warmup: Annotated[
        int, whole("--warmup", minimum=0, section=RECIPE, help="Steps to reach it; then a cosine.")
    ] = 200,
    weight_decay: Annotated[float, real("--weight-decay", section=RECIPE, help="AdamW's, on matrices.")] = 0.05,
    grad_clip: Annotated[float, real("--grad-clip", section=RECIPE, help="Largest norm of the gradient.")] = 1.0,
    label_smoothing: Annotated[
        float, real("--label-smoothing", section=RECIPE, help="Share of probability spread over all words.")
    ] = 0.1,
    dropout: Annotated[
        float | None, real("--dropout", section=RECIPE, help="In every block, the model's own if left out.")
    ] = None,
    precision: Annotated[
        str, choice("--precision", choices=("float32", "bfloat16"), section=RECIPE, help="Autocast or none.")
    ] = "float32",
    freeze: Annotated[
        str, choice("--freeze", choices=("none", "vision", "text"), section=RECIPE, help="Part that keeps its weights.")
    ] = "none",
    cache_features: Annotated[
        bool, typer.Option("--cache-features", rich_help_panel=RECIPE, help="Run a frozen tower once an image.")
    ] = False,
    eval_every: Annotated[
        int | None, whole("--eval-every", minimum=1, section=RUN, help="Steps between scores.  [default: one epoch]")
    ] = None,
    save_dtype: Annotated[
        str,
        choice("--save-dtype", choices=("float32", "bfloat16", "float16"), section=RUN, help="Of the matrices in DIR."),
    ] = "float32",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a captioning model on images with captions."""
    options = TrainOptions(
        data=tuple(data),
        out=Path(out),
        val=tuple(val or ()),
        preset=preset,
        config=None if config is None else Path(config),
        init=init,
        settings=_settings(set_ or []),
        vision_init=None if vision_init is None else Path(vision_init),
        tokenizer=tokenizer,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        label_smoothing=label_smoothing,
        dropout=dropout,
        precision=precision,  # type: ignore[arg-type]
        freeze=freeze,  # type: ignore[arg-type]
        cache_features=cache_features,
        eval_every=eval_every,
        save_dtype=save_dtype,  # type: ignore[arg-type]
        device=device,
        seed=seed,
    )
    from mmt_cli.device import set_threads
    from mmt_cli.training.loop import Trainer

    set_threads(threads)
    trainer = Trainer(options)
    with TrainProgress(quiet=quiet) as progress:
        for event in trainer.run():
            progress.show(event)
    console.emit(f"{options.out}\n")


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Read `key=value`, the value as JSON where it is some, else as text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"bad setting (--set {pair!r}, expected KEY=VALUE); write it like --set num_layers=2")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings
