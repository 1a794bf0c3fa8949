"""Tables for people, drawn by rich on stdout; programs get JSON instead."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmt_cli.cli import console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NARROWEST = 9  # characters of a name where the terminal is too narrow for everything
LONGEST_LINE = 1000  # characters of what has a line of its own
_LONGEST_CELL = 200  # characters; tensor names may have a million
_ENDLESS = 100_000  # columns
_STEP = 1000
_ROUNDS_UP = 999.5


def cell(content: str, *, style: str = "") -> "Text":
    """Return text for a table: rich reads no markup in it, nothing in it steers the terminal, and its end is cut."""
    from rich.text import Text

    return Text(short(content), style=style)


def plain(content: str) -> "Text | str":
    """Return a figure for a table: as it is where nothing in it can steer the terminal, which takes less time."""
    return content if content.isascii() and content.isprintable() else cell(content)


def lines(contents: Sequence[str]) -> "Text":
    """Return texts of a line each, which `show` does not wrap."""
    from rich.text import Text

    return Text("\n".join(short(content, LONGEST_LINE) for content in contents), no_wrap=True)


def short(content: str, longest: int = _LONGEST_CELL) -> str:
    """Return a text from outside on one line, nothing in it that steers the terminal, and its end cut."""
    return console.printable(content if len(content) <= longest else content[:longest] + "…")


def new_table(*columns: str, left: int = 1) -> "Table":
    """Return an empty table whose first `left` columns are names, the others figures; of names only the first folds."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")
    for index, name in enumerate(columns):
        if index < left:
            table.add_column(name, overflow="fold", no_wrap=index > 0, min_width=NARROWEST)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def width() -> int:
    """Return how many columns `show` has: those of the terminal, else of COLUMNS, else 80."""
    from rich.console import Console

    return Console(file=sys.stdout).width


def is_endless() -> bool:
    """Say whether `show` takes as many columns as it needs: to a file or a pipe, unless COLUMNS says how many."""
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def show(*parts: "Table | Text") -> None:
    """Print to stdout with an empty line between parts.

    As wide as the terminal is. Where there is none as wide as COLUMNS says, or else as the tables need: what searches
    in a file or a pipe wants each row on one line.
    """
    from rich.console import Console
    from rich.text import Text

    colour = console.use_colour(sys.stdout)
    out = Console(
        file=sys.stdout, force_terminal=colour, no_color=not colour, highlight=False, markup=False, emoji=False
    )
    if is_endless():
        out.width = _ENDLESS
    with out.capture() as drawn:
        for index, part in enumerate(parts):
            if index:
                out.print()
            # Rich's word for text that neither wraps nor is cut at the edge.
            out.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))
    # Rich itself would answer a closed pipe by an exit of its own.
    sys.stdout.write(drawn.get())
    console.flush()


def quantity(number: float, unit: str = "") -> str:
    """Return a number of at most four digits with a decimal prefix: `1.23 M`, `850 kB`, `12 B`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < _ROUNDS_UP or prefix == "T":
            break
        number /= _STEP
    digits = f"{number:.0f}" if not prefix or number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    return f"{digits} {prefix}{unit}".rstrip()


def share(part: float, whole: float) -> str:
    """Return `part` as a percentage of `whole`; nothing of nothing is nothing."""
    return f"{100 * part / whole if whole else 0:.1f}%"


def figure(number: float) -> str:
    """Return a measured number with about three digits that say something."""
    digits = 0 if number >= 1000 else 1 if number >= 100 else 2 if number >= 10 else 3
    return f"{number:,.{digits}f}"
