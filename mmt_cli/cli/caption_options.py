"""The options of `mmt caption`."""

from typing import Annotated, Literal

import typer

from mmt_cli.cli import options

Format = Literal["text", "tsv", "jsonl", "csv"]
Existing = Literal["skip", "overwrite", "append", "prepend"]
Stopping = Literal["true", "false", "never"]
_LIMIT = (r"[0-9]{1,18}|100%|[0-9]{1,2}(\.[0-9]{1,9})?%", "a number of images, or a percentage such as 5%")

_UNICODE = (r"[^\ud800-\udfff]*", "text in the encoding of the terminal")
_input = {"section": "Input"}
_output = {"section": "Output"}
Paths = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATHS", help="Images, folders, .tar shards, - for stdin.", show_default=False),
]
Prompt = Annotated[
    str | None,
    options.text("--prompt", "-p", matching=_UNICODE, help="First words of each caption, or a question.", **_input),
]
Recursive = Annotated[bool, options.flag("--recursive", "-r", help="Search folders inside folders too.", **_input)]
OutputFormat = Annotated[
    Format,
    options.choice(
        "--format",
        "-f",
        metavar="KIND",
        choices=("text", "tsv", "jsonl", "csv"),
        help="text, tsv, jsonl or csv.",
        **_output,
    ),
]
Output = Annotated[
    str | None,
    options.text("--output", "-o", metavar="FILE", help="Write results there, not to stdout.", **_output),
]
Resume = Annotated[bool, options.flag("--resume", help="Go on with FILE: do what is not in it yet.", **_output)]
Sidecar = Annotated[bool, options.flag("--sidecar", help="Write a text file beside each image, too.", **_output)]
SidecarExt = Annotated[str, options.text("--sidecar-ext", metavar="EXT", help="How its name ends.", **_output)]
IfExists = Annotated[
    Existing,
    options.choice(
        "--if-exists",
        choices=("skip", "overwrite", "append", "prepend"),
        metavar="HOW",
        help="skip, overwrite, append, prepend.",
        **_output,
    ),
]
Prefix = Annotated[str, options.text("--prefix", matching=_UNICODE, help="Stands before each caption.", **_output)]
Suffix = Annotated[str, options.text("--suffix", matching=_UNICODE, help="Stands behind each caption.", **_output)]
Stream = Annotated[
    bool | None,
    options.flag("--stream/--no-stream", help="Words as they come.  [default: where seen]", **_output),
]
Report = Annotated[
    str | None, options.text("--report", metavar="FILE", help="Write a page of HTML with all images.", **_output)
]
Grounding = Annotated[
    bool,
    options.flag("--grounding", help="Add image_gain: bits that the image brings.", **_output),
]
MaxPixels = Annotated[
    int | None,
    options.whole("--max-pixels", minimum=1, help="Refuse larger images.  [default: 64000000]", **_input),
]
FilesFrom = Annotated[
    str | None,
    options.text("--files-from", metavar="FILE", help="A list of names, or of JSON lines with prompts.", **_input),
]
Null = Annotated[bool, options.flag("--null", "-0", help="Names in that list end in NUL.", **_input)]
Shard = Annotated[
    str | None, options.text("--shard", metavar="I/N", help="Only the I-th of N shares, counted from 0.", **_input)
]
DryRun = Annotated[bool, options.flag("--dry-run", help="Look at each image, run no model.", **_input)]
MaxErrors = Annotated[
    str | None,
    options.text(
        "--max-errors", metavar="N|N%", matching=_LIMIT, help="Stop after more failures.  [default: never]", **_input
    ),
]

NoSplit = Annotated[
    bool, options.flag("--no-split", section=options.MODEL, help="Images whole, where the model cuts tiles.")
]
System = Annotated[
    str | None,
    options.text("--system", matching=_UNICODE, section=options.MODEL, help="System prompt, for chat models."),
]

# Where one of these is left out, the checkpoint's own setting holds. Their bounds are checked by GenerationOptions.
_words = {"section": "Generation (defaults: the checkpoint's)"}
MaxNewTokens = Annotated[int | None, options.whole("--max-new-tokens", help="Most tokens after the prompt.", **_words)]
MinNewTokens = Annotated[int | None, options.whole("--min-new-tokens", help="No end before N tokens.", **_words)]
NumBeams = Annotated[int | None, options.whole("--num-beams", help="Beam search; 1 takes the likeliest.", **_words)]
LengthPenalty = Annotated[float | None, options.real("--length-penalty", help="Beams: above 0 longer.", **_words)]
EarlyStopping = Annotated[
    Stopping | None,
    options.choice(
        "--early-stopping",
        choices=("true", "false", "never"),
        metavar="WHEN",
        help="Beams: true, false or never.",
        **_words,
    ),
]
Temperature = Annotated[float | None, options.real("--temperature", help="Sample; above 1 more varied.", **_words)]
TopK = Annotated[int | None, options.whole("--top-k", help="Sample among the N likeliest tokens.", **_words)]
TopP = Annotated[float | None, options.real("--top-p", help="Sample within this probability.", **_words)]
RepetitionPenalty = Annotated[
    float | None, options.real("--repetition-penalty", help="Above 1 repeats less.", **_words)
]
NoRepeatNgramSize = Annotated[
    int | None, options.whole("--no-repeat-ngram-size", help="No run of N tokens twice.", **_words)
]
NumCaptions = Annotated[int | None, options.whole("--num-captions", help="Captions for each image.", **_words)]
StopLoops = Annotated[
    bool | None,
    options.flag("--stop-loops/--no-stop-loops", help="End a caption that repeats itself.", **_words),
]
BatchSize = Annotated[
    str,
    options.text(
        "--batch-size",
        "-b",
        metavar="auto|N",
        matching=(r"auto|[1-9][0-9]{0,5}", "auto or a whole number from 1"),
        section=options.RUN,
        help="Images captioned at a time.",
    ),
]
Workers = Annotated[
    int | None,
    options.whole("--workers", minimum=1, section=options.RUN, help="Threads that read.  [default: up to 8]"),
]
