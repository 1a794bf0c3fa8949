"""The options of `mmt train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmt_cli.cli.options import choice, flag, parse_settings, real, text, whole
from mmt_cli.errors import UsageError, shown
from mmt_cli.training.options import ScoreOptions, TrainOptions

DATA, START, RECIPE, RUN = "Data and output", "Start from", "Recipe", "Run"

Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        help="Tar shards, .jsonl, .csv, .json, folders with .txt files; for language also .txt[.gz].",
        show_default=False,
    ),
]
Out = Annotated[
    str | None,
    text("--out", "-o", section=DATA, metavar="DIR", help="Folder to write: a checkpoint, or scores."),
]
Val = Annotated[list[str] | None, text("--val", section=DATA, metavar="DATA", help="Data to score on; may come again.")]
Images = Annotated[
    str | None,
    text("--images", section=DATA, metavar="DIR", help="Where the images of a list lie.  [default: beside it]"),
]
MaxErrors = Annotated[
    str | None,
    text(
        "--max-errors",
        section=DATA,
        metavar="N|N%",
        matching=(r"[0-9]{1,18}|100%|[0-9]{1,2}(\.[0-9]{1,9})?%", "a number of examples, or a percentage such as 5%"),
        help="Leave out so many bad examples.  [default: 0]",
    ),
]
ShuffleBuffer = Annotated[
    int | None,
    whole("--shuffle-buffer", minimum=1, section=DATA, help="Read files in order, and shuffle N examples at a time."),
]
Augment = Annotated[
    str | None,
    text("--augment", section=DATA, metavar="KINDS", help="Change images: any of crop,flip,colour."),
]

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
    int,
    whole(
        "--batch-size",
        "-b",
        minimum=1,
        section=RECIPE,
        help="Images a batch, with all their captions; of each process.",
    ),
]
GradAccum = Annotated[int, whole("--grad-accum", minimum=1, section=RECIPE, help="Batches a step.")]
Lr = Annotated[float, real("--lr", section=RECIPE, help="Highest learning rate.")]
Warmup = Annotated[int, whole("--warmup", minimum=0, section=RECIPE, help="Steps to reach it.")]
Schedule = Annotated[
    Literal["cosine", "linear", "constant"],
    choice(
        "--schedule",
        choices=("cosine", "linear", "constant"),
        section=RECIPE,
        metavar="NAME",
        help="From there on: cosine or linear, down to zero, or constant.",
    ),
]
WeightDecay = Annotated[float, real("--weight-decay", section=RECIPE, help="AdamW's, on matrices.")]
GradClip = Annotated[float, real("--grad-clip", section=RECIPE, help="Largest norm of the gradient.")]
LabelSmoothing = Annotated[
    float, real("--label-smoothing", section=RECIPE, help="Share of probability spread over all words.")
]
Dropout = Annotated[float | None, real("--dropout", section=RECIPE, help="In every block.  [default: the model's]")]
Ema = Annotated[
    float | None, real("--ema", section=RECIPE, help="Score and save a moving average of the weights, decay X.")
]
Lora = Annotated[
    int | None, whole("--lora", minimum=1, section=RECIPE, help="Train adapters of rank N alone; merged in DIR.")
]
LoraTargets = Annotated[
    list[str] | None,
    text(
        "--lora-targets",
        section=RECIPE,
        metavar="NAME",
        help="Linear maps that get one, such as qkv or blocks.*.up; may come again.  [default: the text's attention]",
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    choice(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        section=RECIPE,
        metavar="NAME",
        help="bfloat16 or float16: autocast.",
    ),
]
Freeze = Annotated[
    Literal["none", "vision", "text"],
    choice("--freeze", choices=("none", "vision", "text"), section=RECIPE, help="Part that keeps its weights."),
]
Objective = Annotated[
    Literal["caption", "caption+contrastive", "masked", "language", "scst"],
    choice(
        "--objective",
        choices=("caption", "caption+contrastive", "masked", "language", "scst"),
        section=RECIPE,
        metavar="NAME",
        help="caption, caption+contrastive, masked, language (text alone) or scst (own captions, scored).",
    ),
]
SampleTemperature = Annotated[
    float, real("--sample-temperature", section=RECIPE, help="Of the captions that scst draws and learns from.")
]
CacheFeatures = Annotated[
    bool, flag("--cache-features", section=RECIPE, help="Keep what a frozen tower sees on the disk.")
]
GradCheckpointing = Annotated[
    bool, flag("--grad-checkpointing", section=RECIPE, help="Less memory: run each block twice.")
]
Compile = Annotated[bool, flag("--compile", section=RECIPE, help="Compile the blocks: slower start, faster steps.")]

EvalOnly = Annotated[bool, flag("--eval-only", section=RUN, help="Score --init on --val; train nothing.")]
EvalEvery = Annotated[
    int | None, whole("--eval-every", minimum=1, section=RUN, help="Steps between scores.  [default: one epoch]")
]
EarlyStop = Annotated[
    int | None, whole("--early-stop", minimum=1, section=RUN, help="End after N scores without a new best.")
]
SaveEvery = Annotated[
    int | None, whole("--save-every", minimum=1, section=RUN, help="Steps between checkpoints.  [default: each score]")
]
Keep = Annotated[int, whole("--keep", minimum=1, section=RUN, help="Newest checkpoints to keep.")]
KeepBest = Annotated[int, whole("--keep-best", minimum=0, section=RUN, help="Best checkpoints to keep besides.")]
Resume = Annotated[
    str | None,
    text(
        "--resume",
        section=RUN,
        metavar="WHICH",
        help="Go on from a checkpoint in DIR: auto (if there is one), latest, or its path.",
    ),
]
ReportTo = Annotated[
    Literal["none", "tensorboard", "wandb"],
    choice(
        "--report-to",
        choices=("none", "tensorboard", "wandb"),
        section=RUN,
        metavar="NAME",
        help="Send figures to tensorboard or wandb.",
    ),
]
Parallel = Annotated[
    Literal["ddp", "fsdp"] | None,
    choice(
        "--parallel",
        choices=("ddp", "fsdp"),
        section=RUN,
        metavar="NAME",
        help="Under torchrun; ddp: each process has all weights, fsdp: a share.  [default: ddp]",
    ),
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
Format = Annotated[
    Literal["text", "json"],
    choice("--format", "-f", choices=("text", "json"), section=RUN, help="How --eval-only prints figures."),
]

_PATHS = ("out", "config", "vision_init", "images")
_LISTS = ("data", "val", "lora_targets")


def train_options(values: Mapping[str, Any]) -> TrainOptions:
    """Return the options of a run from what the parser gives, by the command's names of its parameters.

    Raises:
        UsageError: something is missing, out of bounds or excluded by something else.
    """
    if not values["data"]:
        raise UsageError("nothing to train on (DATA is missing); name a folder, a .tar or a .jsonl")
    if values["out"] is None:
        raise UsageError("nowhere to write to (--out is missing); name a folder")
    read = {**values, "settings": parse_settings(values["set_"] or []), "compile": values["compile_"]}
    del read["set_"], read["compile_"]
    read |= {name: None if read[name] is None else Path(read[name]) for name in _PATHS}
    read |= {name: tuple(read[name] or ()) for name in _LISTS}
    read["augment"] = tuple(filter(None, (read["augment"] or "").split(",")))
    return TrainOptions(**read)


def score_options(values: Mapping[str, Any]) -> ScoreOptions:
    """Return the options of `--eval-only`.

    Raises:
        UsageError: there is nothing to score on, or no trained model.
    """
    for name in ("preset", "config"):
        if values[name] is not None:
            raise UsageError(
                f"an untrained model has no score (--eval-only, --{name} {shown(values[name])}); name one with --init"
            )
    if not values["val"]:
        raise UsageError("nothing to score on (--eval-only without --val); give --val DATA")
    return ScoreOptions(
        model=values["init"] or "mini",
        val=tuple(values["val"]),
        out=None if values["out"] is None else Path(values["out"]),
        images=None if values["images"] is None else Path(values["images"]),
        max_errors=values["max_errors"],
        tokenizer=values["tokenizer"],
        batch_size=values["batch_size"],
        device=values["device"],
        dtype=values["precision"],
    )
