"""Tables for people, drawn by rich on stdout; programs get JSON instead."""

import sys
from typing import TYPE_CHECKING

from mmt_cli.cli import console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_LONGEST_CELL = 200  # characters; tensor names may have a million
_NARROWEST = 9  # characters of a name where the terminal is too narrow for everything
_STEP = 1000
_ROUNDS_UP = 999.5


def cell(content: str, *, style: str = "") -> "Text":
    """Return text for a table: rich reads no markup in it, nothing in it steers the terminal, and its end is cut."""
    from rich.text import Text

    shown = content if len(content) <= _LONGEST_CELL else content[:_LONGEST_CELL] + "…"
    return Text(console.printable(shown), style=style)


def new_table(*columns: str, left: int = 1) -> "Table":
    """Return an empty table whose first `left` columns are names, the others figures; of names only the first folds."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")
    for index, name in enumerate(columns):
        if index < left:
            table.add_column(name, overflow="fold", no_wrap=index > 0, min_width=_NARROWEST)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def show(*parts: "Table | Text") -> None:
    """Print to stdout with an empty line between parts.

    As wide as the terminal is, or 80 columns where there is none and COLUMNS says nothing else.
    """
    from rich.console import Console

    colour = console.use_colour(sys.stdout)
    out = Console(file=sys.stdout, force_terminal=colour, no_color=not colour, highlight=False, markup=False)
    with out.capture() as drawn:
        for index, part in enumerate(parts):
            if index:
                out.print()
            out.print(part)
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
