"""`mmt caption`: parses, calls, prints."""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmt_cli.cli import console, options
from mmt_cli.errors import UsageError

if TYPE_CHECKING:
    from mmt_cli.captioning.captioner import Captioner
    from mmt_cli.captioning.run import RunOptions
    from mmt_cli.captioning.sources import Item
    from mmt_cli.captioning.writers import Formatter, Record

Format = Literal["text", "tsv", "jsonl"]
Stopping = Literal["true", "false", "never"]
_LIMIT = (r"[0-9]{1,18}|100%|[0-9]{1,2}(\.[0-9]{1,9})?%", "a number of images, or a percentage such as 5%")

_input = {"section": "Input and output"}
Paths = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATHS", help="Images, folders, or - for one image on stdin.", show_default=False),
]
_UNICODE = (r"[^\ud800-\udfff]*", "text in the encoding of the terminal")
Prompt = Annotated[
    str | None,
    options.text("--prompt", "-p", matching=_UNICODE, help="First words of each caption, or a question.", **_input),
]
Recursive = Annotated[bool, options.flag("--recursive", "-r", help="Search folders inside folders too.", **_input)]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=("text", "tsv", "jsonl"), help="How results look.", **_input)
]
MaxPixels = Annotated[
    int | None,
    options.whole("--max-pixels", minimum=1, help="Refuse larger images.  [default: 64000000]", **_input),
]
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
BatchSize = Annotated[
    int, options.whole("--batch-size", "-b", minimum=1, section=options.RUN, help="Images captioned at a time.")
]


def caption(
    paths: Paths = None,
    prompt: Prompt = None,
    recursive: Recursive = False,
    output_format: OutputFormat = "text",
    max_pixels: MaxPixels = None,
    max_errors: MaxErrors = None,
    model: options.Model = "mini",
    revision: options.Revision = None,
    offline: options.Offline = False,
    tokenizer: options.Tokenizer = None,
    no_split: NoSplit = False,
    system: System = None,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    num_beams: NumBeams = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    batch_size: BatchSize = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a caption for each image."""
    from mmt_cli.captioning.overrides import override
    from mmt_cli.captioning.sources import names_one_file
    from mmt_cli.captioning.writers import formatter
    from mmt_cli.decoding.options import GenerationOptions

    given = _given(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping={"true": True, "false": False}.get(early_stopping or "", early_stopping),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    # Whatever is wrong with the command itself is said before seconds go into loading a model.
    override(GenerationOptions(max_new_tokens=1_000_000), given)
    items, max_failures = _limited(_found(paths or [], recursive=recursive), max_errors)
    line_of = formatter(output_format, single=names_one_file(paths or []))

    from mmt_cli.captioning.captioner import Captioner
    from mmt_cli.captioning.run import RunOptions
    from mmt_cli.device import keep_freed_memory, set_threads
    from mmt_cli.inputs.image import MAX_PIXELS

    keep_freed_memory()
    set_threads(threads)
    hub = console.hub_options(revision=revision, offline=offline, quiet=quiet)
    captioner = Captioner.load(model, device=device, dtype=dtype, tokenizer=tokenizer, hub=hub)
    captioner = captioner.adjusted(split=not no_split, system=system)
    run = RunOptions(
        prompt=prompt,
        generation=override(captioner.generation, given),
        batch_size=batch_size,
        max_pixels=max_pixels or MAX_PIXELS,
        max_failures=max_failures,
        seed=seed,
    )
    # Only jsonl names the weights, and hashing them takes its time.
    name = functools.cache(captioner.fingerprint) if output_format == "jsonl" else lambda: captioner.name
    _run(captioner, items, run, line_of=line_of, name=name, quiet=quiet)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _found(paths: Sequence[str], *, recursive: bool) -> "Iterator[Item]":
    """Return the images that the arguments name, or say that there are none."""
    from mmt_cli.captioning.sources import STDIN, find_images

    if not paths:
        raise UsageError("no image named (PATHS is empty); name images or folders, or - for an image on stdin")
    if paths.count(STDIN) > 1:
        raise UsageError(f"stdin holds one image ('-' is named {paths.count(STDIN)} times); name it once")
    if STDIN in paths and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("stdin is a terminal ('-' reads an image from it); pipe an image in, or name a file")
    items = find_images(paths, recursive=recursive)
    first = next(items, None)
    if first is None:
        where = f"'{paths[0]}'" if len(paths) == 1 else f"{len(paths)} folders"
        advice = "name another folder" if recursive else "add -r to search folders inside, or name another one"
        raise UsageError(f"no image found (in {where}, by suffix); {advice}")
    return itertools.chain([first], items)


def _limited(items: "Iterator[Item]", limit: str | None) -> "tuple[Iterable[Item], int | None]":
    """Return the items and how many of them may fail; a percentage is one of all items, so it has them counted."""
    if limit is None:
        return items, None
    if not limit.endswith("%"):
        return items, int(limit)
    counted = list(items)
    return counted, int(len(counted) * Fraction(limit[:-1]) / 100)


def _run(
    captioner: "Captioner",
    items: "Iterable[Item]",
    run: "RunOptions",
    *,
    line_of: "Formatter",
    name: Callable[[], str],
    quiet: bool,
) -> None:
    """Caption everything, print as it comes, and end with a summary.

    Raises:
        typer.Exit: with code 3, when an image failed.
    """
    from mmt_cli.captioning.run import Tally, caption_images

    tally, start = Tally(), time.perf_counter()
    with console.Progress(quiet=quiet) as progress:

        def write(record: "Record") -> None:
            if record.error:
                reason = str(record.error).removeprefix(f"{record.path} ")
                progress.note(f"mmt: {record.path}: {reason}")
            console.emit(line_of(record))
            progress.advance()

        try:
            caption_images(captioner, items, run, model=name, write=write, tally=tally)
        finally:
            seconds = time.perf_counter() - start
            if not quiet and tally.done + tally.failed:
                rate = f"{tally.done / seconds:.1f} images/s"
                where = f"{captioner.device}, {str(captioner.dtype).removeprefix('torch.')}"
                progress.note(
                    f"mmt: {tally.done} captioned, {tally.failed} failed in {seconds:.1f} s ({rate}) on {where}"
                )
    if tally.failed:
        raise typer.Exit(3)
