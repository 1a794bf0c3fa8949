"""`mmt train`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmt_cli.cli import console
from mmt_cli.cli.options import Debug, Device, Quiet, Seed, Threads, choice, flag, parse_settings, real, text, whole
from mmt_cli.cli.train_progress import TrainProgress
from mmt_cli.training.options import TrainOptions

DATA, START, RECIPE, RUN = "Data and output", "Start from", "Recipe", "Run"


Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="Tar shards, .jsonl, folders with .txt files; for language also .txt[.gz]."),
]
Out = Annotated[str, text("--out", "-o", section=DATA, metavar="DIR", help="Checkpoint folder to write.")]
Val = Annotated[list[str] | None, text("--val", section=DATA, metavar="DATA", help="Data to score on; may come again.")]

Preset = Annotated[
    str | None, text("--preset", section=START, metavar="NAME", help="Shape of a new model, such as mini.")
]
Config = Annotated[str | None, text("--config", section=START, metavar="FILE", help="Model configuration in TOML.")]
Init = Annotated[str | None, text("--init", section=START, metavar="MODEL", help="Trained model to go on from.")]
VisionInit = Annotated[
    str | None, text("--vision-init", section=START, metavar="FILE", help="Weights of the image tower alone.")
]
Tokenizer = Annotated[
    str | None, text("--tokenizer", section=START, metavar="PATH", help="Tokenizer; else one is trained.")
]
Settings = Annotated[
    list[str] | None, text("--set", section=START, metavar="KEY=VALUE", help="Change the preset; may come again.")
]

Epochs = Annotated[float, real("--epochs", section=RECIPE, help="Times each image is seen.")]
Steps = Annotated[int | None, whole("--steps", minimum=1, section=RECIPE, help="Optimizer steps, instead of epochs.")]
BatchSize = Annotated[
    int, whole("--batch-size", "-b", minimum=1, section=RECIPE, help="Images a step, with all their captions.")
]
Lr = Annotated[float, real("--lr", section=RECIPE, help="Highest learning rate.")]
Warmup = Annotated[int, whole("--warmup", minimum=0, section=RECIPE, help="Steps to reach it; then a cosine.")]
WeightDecay = Annotated[float, real("--weight-decay", section=RECIPE, help="AdamW's, on matrices.")]
GradClip = Annotated[float, real("--grad-clip", section=RECIPE, help="Largest norm of the gradient.")]
LabelSmoothing = Annotated[
    float, real("--label-smoothing", section=RECIPE, help="Share of probability spread over all words.")
]
Dropout = Annotated[float | None, real("--dropout", section=RECIPE, help="In every block.  [default: the model's]")]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    choice("--precision", choices=("float32", "bfloat16"), section=RECIPE, help="bfloat16: autocast."),
]
Freeze = Annotated[
    Literal["none", "vision", "text"],
    choice("--freeze", choices=("none", "vision", "text"), section=RECIPE, help="Part that keeps its weights."),
]
Objective = Annotated[
    Literal["caption", "caption+contrastive", "masked", "language"],
    choice(
        "--objective",
        choices=("caption", "caption+contrastive", "masked", "language"),
        section=RECIPE,
        metavar="NAME",
        help="caption, caption+contrastive, masked or language (text alone).",
    ),
]
CacheFeatures = Annotated[
    bool, flag("--cache-features", section=RECIPE, help="Keep what a frozen tower sees on the disk.")
]
GradCheckpointing = Annotated[
    bool, flag("--grad-checkpointing", section=RECIPE, help="Less memory: run each block twice.")
]
EvalEvery = Annotated[
    int | None, whole("--eval-every", minimum=1, section=RUN, help="Steps between scores.  [default: one epoch]")
]
SaveFormat = Annotated[
    Literal["auto", "mmt", "hf"],
    choice(
        "--save-format",
        choices=("auto", "mmt", "hf"),
        section=RUN,
        help="Of DIR; auto: hf for models from a Hugging Face folder.",
    ),
]
SaveDtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    choice(
        "--save-dtype",
        choices=("float32", "bfloat16", "float16"),
        section=RUN,
        metavar="NAME",
        help="Of matrices in DIR.",
    ),
]


def train(
    data: Data,
    out: Out,
    val: Val = None,
    preset: Preset = None,
    config: Config = None,
    init: Init = None,
    vision_init: VisionInit = None,
    tokenizer: Tokenizer = None,
    set_: Settings = None,
    epochs: Epochs = 10,
    steps: Steps = None,
    batch_size: BatchSize = 32,
    lr: Lr = 5e-4,
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.05,
    grad_clip: GradClip = 1.0,
    label_smoothing: LabelSmoothing = 0.1,
    dropout: Dropout = None,
    precision: Precision = "float32",
    freeze: Freeze = "none",
    objective: Objective = "caption",
    cache_features: CacheFeatures = False,
    grad_checkpointing: GradCheckpointing = False,
    eval_every: EvalEvery = None,
    save_format: SaveFormat = "auto",
    save_dtype: SaveDtype = "float32",
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
        config=_path(config),
        init=init,
        settings=parse_settings(set_ or []),
        vision_init=_path(vision_init),
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
        precision=precision,
        freeze=freeze,
        objective=objective,
        cache_features=cache_features,
        grad_checkpointing=grad_checkpointing,
        eval_every=eval_every,
        save_format=save_format,
        save_dtype=save_dtype,
        device=device,
        seed=seed,
    )
    _run(options, threads=threads, quiet=quiet)


def _run(options: TrainOptions, *, threads: int | None, quiet: bool) -> None:
    from mmt_cli.device import keep_freed_memory, set_threads
    from mmt_cli.training.loop import Trainer

    if not options.grad_checkpointing:  # what is kept lies in pieces: recomputing then takes twice the memory
        keep_freed_memory()
    set_threads(threads)
    trainer = Trainer(options)
    with TrainProgress(quiet=quiet) as progress:
        for event in trainer.run():
            progress.show(event)
    console.emit(f"{options.out}\n")


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
