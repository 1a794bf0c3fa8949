"""Options that several commands share, and how values are read.

The parser's own errors name the value only sometimes and the remedy never. The readers here name both, and run
before anything heavy is imported.
"""
# ruff: noqa: A002 — `help` is what typer calls it

import json
import math
import re
from typing import Annotated, Any, Literal

import typer

from mmt_cli.errors import UsageError

MODEL, RUN = "Model", "Run"


def refuse(name: str, value: object, expected: str) -> UsageError:
    """Return the error for a bad value of option `name`."""
    shown = repr(value) if len(str(value)) <= 60 else repr(str(value)[:60]) + "..."
    return UsageError(f"bad value for {name} (got {shown}, expected {expected}); change it or leave it out")


def whole(*names: str, help: str, section: str | None = None, minimum: int | None = None) -> Any:
    """Return an option that takes a whole number from `minimum` on."""
    expected = "a whole number" if minimum is None else f"a whole number from {minimum}"

    def read(value: Any) -> int:
        # int() also takes other scripts' digits, underscores and spaces.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", str(value)) or (minimum is not None and int(value) < minimum):
            raise refuse(names[0], value, expected)
        return int(value)

    return typer.Option(*names, parser=read, metavar="N", help=help, rich_help_panel=section)


def real(*names: str, help: str, section: str | None = None) -> Any:
    """Return an option that takes a finite number."""

    def read(value: Any) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise refuse(names[0], value, "a finite number")
        return number

    return typer.Option(*names, parser=read, metavar="X", help=help, rich_help_panel=section)


def choice(
    *names: str, choices: tuple[str, ...], help: str, section: str | None = None, metavar: str | None = None
) -> Any:
    """Return an option that takes one of `choices`; `metavar` stands for them where they would fill the line."""

    def read(value: Any) -> str:
        if value not in choices:
            raise refuse(names[0], value, f"{', '.join(choices[:-1])} or {choices[-1]}")
        return str(value)

    return typer.Option(*names, parser=read, metavar=metavar or "|".join(choices), help=help, rich_help_panel=section)


def text(
    *names: str,
    help: str,
    section: str | None = None,
    metavar: str = "TEXT",
    matching: tuple[str, str] | None = None,
) -> Any:
    """Return an option that takes text.

    Args:
        names: the option's names, the one that errors use first.
        help: its line on the help page.
        section: its section there.
        metavar: what stands for the value there.
        matching: a regular expression for the whole value, and what it accepts in words.
    """
    expression, expected = matching or (r"(?s:.*)", "")

    def read(value: Any) -> str:
        if not re.fullmatch(expression, value):
            raise refuse(names[0], value, expected)
        return str(value)

    return typer.Option(*names, parser=read, metavar=metavar, help=help, rich_help_panel=section)


def flag(*names: str, help: str, section: str | None = None) -> Any:
    """Return an option that takes no value."""
    return typer.Option(*names, help=help, rich_help_panel=section)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read `key=value`, the value as JSON where it is some, else as text.

    Raises:
        UsageError: there is no key or no equals sign.
    """
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


_DEVICE = (r"auto|cpu|mps|cuda(:[0-9]{1,3})?", "auto, cpu, cuda, cuda:N or mps")
_DTYPES = ("auto", "float32", "bfloat16", "float16")

Model = Annotated[str, text("--model", "-m", metavar="MODEL", section=MODEL, help="Name, folder, file or hub id.")]
Revision = Annotated[
    str | None, text("--revision", metavar="REV", section=MODEL, help="Branch, tag or commit of a hub id.")
]
Offline = Annotated[bool, flag("--offline", section=MODEL, help="Ask no hub; take what the cache holds.")]
Tokenizer = Annotated[
    str | None, text("--tokenizer", metavar="PATH", section=MODEL, help="Its tokenizer, where MODEL has none.")
]
Settings = Annotated[
    list[str] | None,
    text("--set", metavar="KEY=VALUE", section=MODEL, help="Change the preset; may come again."),
]
Device = Annotated[
    str, text("--device", metavar="NAME", matching=_DEVICE, section=MODEL, help="cpu, cuda, cuda:N or mps.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    choice("--dtype", metavar="TYPE", choices=_DTYPES, section=MODEL, help="float32, bfloat16 or float16."),
]
Quantize = Annotated[
    str | None,
    text(
        "--quantize",
        metavar="int8",
        matching=("int8", "int8"),
        section=MODEL,
        help="Weights and inputs in 8 bits, on a CPU.",
    ),
]
Threads = Annotated[int | None, whole("--threads", minimum=1, section=RUN, help="CPU threads.  [default: all cores]")]
Seed = Annotated[int, whole("--seed", minimum=0, section=RUN, help="Start of every random draw.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="No progress, no summary; errors still show.")]
Debug = Annotated[bool, flag("--debug", help="Show the traceback of an error.")]
