"""The options of `mmt inspect`."""

from typing import Annotated, Literal

import typer

from mmt_cli.cli import options, views
from mmt_cli.cli.views import Format

SHOW, LOOK, PLAN, SAVE = "Show", "Look closer, one of these", "Load of --plan", "Save"
_UNICODE = (r"[^\ud800-\udfff]*", "text in the encoding of the terminal")

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, folder, weights file, hub id or preset:NAME.", show_default=True)
]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=views.FORMATS, section=SHOW, help="For people or for programs.")
]
Depth = Annotated[int, options.whole("--depth", minimum=1, section=SHOW, help="Names deep that modules are shown.")]
Tensors = Annotated[bool, options.flag("--tensors", section=SHOW, help="A line for each tensor instead.")]
Config = Annotated[bool, options.flag("--config", section=SHOW, help="Show the model's settings, too.")]
Sha256 = Annotated[bool, options.flag("--sha256", section=SHOW, help="Show the weights' hashes; may read them all.")]
Check = Annotated[bool, options.flag("--check", section=LOOK, help="Find all that is wrong; exit 5 if any.")]
Stats = Annotated[bool, options.flag("--stats", section=LOOK, help="Mean, spread and zeros of the weights.")]
Diff = Annotated[str | None, options.text("--diff", metavar="OTHER", section=LOOK, help="Compare with another model.")]
Tokens = Annotated[
    str | None, options.text("--tokens", section=LOOK, matching=_UNICODE, help="Show how the model reads a text.")
]
Image = Annotated[
    str | None,
    options.text(
        "--image", metavar="FILE", section=LOOK, help="Caption this photo and show what the model does with it."
    ),
]
Prompt = Annotated[
    str | None,
    options.text("--prompt", "-p", section=LOOK, matching=_UNICODE, help="With --image: first words of its caption."),
]
Attention = Annotated[
    str | None,
    options.text("--attention", metavar="OUT", section=LOOK, help="With --image: draw a .png or .html of its looks."),
]
Layer = Annotated[int | None, options.whole("--layer", minimum=0, section=LOOK, help="Of one block alone, from 0.")]
Head = Annotated[int | None, options.whole("--head", minimum=0, section=LOOK, help="Of one head alone, from 0.")]
Rollout = Annotated[bool, options.flag("--rollout", section=LOOK, help="What flows through all layers instead.")]
Plan = Annotated[bool, options.flag("--plan", section=LOOK, help="FLOPs, bytes and memory, for what load.")]
BatchSize = Annotated[
    int | None, options.whole("--batch-size", "-b", minimum=1, section=PLAN, help="Images at a time.")
]
ImageSize = Annotated[
    int | None, options.whole("--image-size", minimum=1, section=PLAN, help="Pixels of a side; the model's own.")
]
Tiles = Annotated[int | None, options.whole("--tiles", minimum=1, section=PLAN, help="Images that stand for one.")]
PromptTokens = Annotated[
    int | None, options.whole("--prompt-tokens", minimum=1, section=PLAN, help="Tokens of the prompt.")
]
GenTokens = Annotated[int | None, options.whole("--gen-tokens", minimum=1, section=PLAN, help="Tokens written.")]
NumBeams = Annotated[int | None, options.whole("--num-beams", minimum=1, section=PLAN, help="Beams of the search.")]
Save = Annotated[
    str | None, options.text("--save", metavar="DIR", section=SAVE, help="Write the model into a new folder.")
]
SaveFormat = Annotated[
    Literal["auto", "mmt", "hf"],
    options.choice("--save-format", choices=("auto", "mmt", "hf"), section=SAVE, help="Whose folder; as it is."),
]
SaveDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    options.choice(
        "--dtype",
        metavar="TYPE",
        choices=("auto", "float32", "bfloat16", "float16"),
        section=SAVE,
        help="float32, bfloat16 or float16; of --plan, too.",
    ),
]
ShardSize = Annotated[
    str | None,
    options.text("--shard-size", metavar="SIZE", section=SAVE, help="Cut the weights, like 2GB or 500MB."),
]
OnlySafetensors = Annotated[
    bool, options.flag("--only-safetensors", section=SAVE, help="Write the weights and nothing else.")
]
