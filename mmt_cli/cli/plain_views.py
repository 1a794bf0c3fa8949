"""Tables for files and pipes, the same as rich draws them there, without the time that rich takes to be imported."""

import sys
from collections.abc import Sequence

from mmt_cli.cli import console, tables


def is_plain() -> bool:
    """Say whether rich would add nothing: no colours, no edge to wrap at, and letters for its lines."""
    encoding = (sys.stdout.encoding or "").lower()
    return tables.is_endless() and not console.use_colour(sys.stdout) and encoding.startswith("utf")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, total: Sequence[str] | None) -> str:
    """Return a table whose first `left` columns are names, the others figures.

    Args:
        columns: their heads.
        rows: as many texts each, or fewer.
        left: how many columns stand at the left of their room.
        total: a last row, set off by an empty line.
    """
    ends = [] if total is None else [[tables.short(text) for text in total]]
    drawn = [list(columns), *([tables.short(text) for text in row] for row in rows), *ends]
    widths = [tables.NARROWEST if index < left else 1 for index in range(len(columns))]
    for row in drawn:
        for index, text in enumerate(row):
            widths[index] = max(widths[index], _cells(text))
    head, *body = (_line(row, widths, left) for row in drawn)
    if ends:
        body.insert(-1, "")
    return "\n".join([head, "─" * (sum(widths) + 2 * len(widths) - 2), *body])


def _line(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for index, (text, width) in enumerate(zip(row, widths, strict=False)):
        blanks = " " * (width - _cells(text))
        padded.append(text + blanks if index < left else blanks + text)
    return "  ".join(padded).rstrip()


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
