"""The options of `mmt bench`, and how its lists are read."""

import re
from typing import Annotated, Literal

import typer

from mmt_cli.cli import options, views
from mmt_cli.errors import UsageError

Format = Literal["table", "md", "csv", "json", "jsonl"]
Phase = Literal["caption", "train"]
Other = Literal["transformers"]

_ITEM = r"[1-9][0-9]{0,5}(-[1-9][0-9]{0,5})?"
_SIZES = (f"{_ITEM}(,{_ITEM})*", "whole numbers from 1 or ranges, joined by commas")
_PERCENT = (r"[0-9]{1,4}(\.[0-9]{1,4})?%?", "a percentage such as 5%")
_MOST_SIZES = 64  # of one list
_WORK = {"section": "Work"}
_COMPARE = {"section": "Compare"}
_SHOW = {"section": "Show"}

Positional = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="What to time; preset:NAME has random weights.", show_default=False),
]
Models = Annotated[
    list[str] | None,
    options.text(
        "--model", "-m", metavar="MODEL", section=options.MODEL, help="The same as an option.  [default: mini]"
    ),
]
PhaseName = Annotated[
    Phase, options.choice("--phase", choices=("caption", "train"), help="A caption, or a training step.", **_WORK)
]
ImageFile = Annotated[
    str | None, options.text("--image", metavar="FILE", help="Image to caption.  [default: a made-up JPEG]", **_WORK)
]
BatchSizes = Annotated[
    str, options.text("--batch-size", "-b", metavar="N,N-N", matching=_SIZES, help="Images at a time.", **_WORK)
]
PromptTokens = Annotated[
    str,
    options.text("--prompt-tokens", metavar="N,N-N", matching=_SIZES, help="Length of the random prompt.", **_WORK),
]
GenTokens = Annotated[
    str,
    options.text(
        "--gen-tokens", metavar="N,N-N", matching=_SIZES, help="New tokens; train reads prompt + new tokens.", **_WORK
    ),
]
ColdStarts = Annotated[
    int, options.whole("--cold-starts", minimum=0, help="Processes timed from start to first caption.", **_WORK)
]
Repetitions = Annotated[
    int, options.whole("--repetitions", "-r", minimum=1, section=options.RUN, help="Captions or steps that are timed.")
]
Warmup = Annotated[int, options.whole("--warmup", minimum=0, section=options.RUN, help="Those before these.")]
Layers = Annotated[bool, options.flag("--layers/--no-layers", section=options.RUN, help="Time layers, by hooks.")]
Against = Annotated[
    Other | None,
    options.choice("--against", choices=("transformers",), help="Time the same weights there, too.", **_COMPARE),
]
BaselineFile = Annotated[
    str | None, options.text("--baseline", metavar="FILE", help="Compare with an older -f json.", **_COMPARE)
]
FailAbove = Annotated[
    str | None,
    options.text("--fail-above", metavar="N%", matching=_PERCENT, help="Exit 3 where surely slower.", **_COMPARE),
]
OutputFormat = Annotated[
    Format,
    options.choice("--format", "-f", choices=(*views.FORMATS, "jsonl"), help="For people or for programs.", **_SHOW),
]
SaveSvg = Annotated[
    str | None, options.text("--save-svg", metavar="FILE", help="Draw the tables into a file, too.", **_SHOW)
]
SaveChart = Annotated[
    str | None, options.text("--save-chart", metavar="FILE", help="Draw the phases as bars: .png, .svg, .pdf.", **_SHOW)
]


def sizes(name: str, text: str) -> tuple[int, ...]:
    """Read a list such as `1,8` or `1-4,16`.

    Raises:
        UsageError: a range runs down, or there are too many numbers.
    """
    found: list[int] = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or len(found) + len(numbers) > _MOST_SIZES:
            raise options.refuse(name, text, f"ranges that run up, {_MOST_SIZES} numbers at most")
        found += numbers
    return tuple(dict.fromkeys(found))


def part(percent: str | None, baseline: str | None) -> float | None:
    """Return a percentage as a part of one.

    Raises:
        UsageError: there is no baseline that it could be of.
    """
    if percent is None:
        return None
    if baseline is None:
        raise UsageError(f"nothing to be slower than (--fail-above {percent}, no --baseline); give --baseline FILE")
    return float(re.sub("%$", "", percent)) / 100
