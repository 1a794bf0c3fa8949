"""One result in four formats: tables for people, Markdown, CSV, and one line of JSON for programs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmt_cli.cli import console, plain_views, tables

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Format = Literal["table", "json", "csv", "md"]
FORMATS = ("table", "json", "csv", "md")
MOST_ROWS = 1000  # nobody reads more, and drawing them takes long
_MARKS = str.maketrans({mark: "\\" + mark for mark in "\\|<*`["})  # what Markdown would take for its own


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table before it is drawn.

    Attributes:
        columns: their heads.
        rows: as many texts each; what comes from outside may hold anything.
        left: how many of the first columns are names.
        total: a last row, set off from the others.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1
    total: tuple[str, ...] | None = None

    @property
    def shown(self) -> Sequence[tuple[str, ...]]:
        """The rows that people see."""
        return self.rows[:MOST_ROWS]

    @property
    def rest(self) -> str | None:
        """What is said of the others."""
        more = len(self.rows) - MOST_ROWS
        return f"… {more:,} more rows, all of them with -f json" if more > 0 else None


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Texts of a line each, however long."""

    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class View:
    """A result; only what its format asks for is made.

    Attributes:
        title: what it is of.
        parts: of the tables and texts for people, below the title.
        records: returns the rows of CSV.
        record: returns the JSON object.
    """

    title: str
    parts: Callable[[], Sequence[Sheet | Lines | str]]
    records: Callable[[], Sequence[Mapping[str, Any]]]
    record: Callable[[], Mapping[str, Any]]


def show(view: View, output_format: Format) -> None:
    """Print a result to stdout."""
    if output_format == "json":
        console.emit(json.dumps(view.record()) + "\n")
    elif output_format == "csv":
        console.emit(_csv(view.records()))
    elif output_format == "md":
        console.emit(_markdown(view))
    elif plain_views.is_plain():
        console.emit("\n\n".join([tables.short(view.title), *map(_plain, view.parts())]) + "\n")
    else:
        tables.show(tables.cell(view.title, style="bold"), *(drawn(part) for part in view.parts()))


def drawn(part: Sheet | Lines | str) -> "Table | Text":
    """Return a part as rich draws it."""
    if isinstance(part, str):
        return tables.cell(part)
    if isinstance(part, Lines):
        return tables.lines(part.lines)
    table = tables.new_table(*part.columns, left=part.left)
    for row in part.shown:
        table.add_row(*(tables.cell(text) for text in row[: part.left]), *map(tables.plain, row[part.left :]))
    if part.rest:
        table.add_row(part.rest)
    if part.total:
        table.add_section()
        table.add_row(*part.total, style="bold")
    return table


def _plain(part: Sheet | Lines | str) -> str:
    """Return a part as `drawn` has it drawn in a file or a pipe."""
    if isinstance(part, str):
        return tables.short(part)
    if isinstance(part, Lines):
        return "\n".join(tables.short(line, tables.LONGEST_LINE) for line in part.lines)
    rows = [*part.shown, *([(part.rest,)] if part.rest else [])]
    return plain_views.table(part.columns, rows, part.left, part.total)


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if records:
        writer.writerow(records[0])
    writer.writerows([_field(value) for value in record.values()] for record in records)
    return out.getvalue()


def _field(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _markdown(view: View) -> str:
    blocks = [f"**{_marked(view.title)}**"]
    for part in view.parts():
        if isinstance(part, str):
            blocks.append(_marked(part))
        elif isinstance(part, Lines):
            blocks.append("\n".join(f"- {_marked(line)}" for line in part.lines))
        else:
            rows = [*part.shown, *([part.total] if part.total else [])]
            rule = ["---" if i < part.left else "---:" for i in range(len(part.columns))]
            lines = [_row(map(_marked, part.columns)), _row(rule), *(_row(map(_marked, row)) for row in rows)]
            blocks += ["\n".join(lines), *([part.rest] if part.rest else [])]
    return "\n\n".join(blocks) + "\n"


def _row(texts: Any) -> str:
    return "| " + " | ".join(texts) + " |"


def _marked(text: str) -> str:
    """Return a text as Markdown shows it, blanks before it included: they indent the tree of modules."""
    inner = text.lstrip(" ")
    return "&nbsp;" * (len(text) - len(inner)) + tables.short(inner).translate(_MARKS)
