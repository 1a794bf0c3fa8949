"""`mmt inspect`: parses, calls, prints."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmt_cli.cli import console, options, tables
from mmt_cli.errors import UsageError, shown

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from mmt_cli.checkpoint.reference import HubOptions
    from mmt_cli.inspection.gates import Gate, GateReading
    from mmt_cli.inspection.summary import Part, Row, Summary

_MOST_ROWS = 1000  # nobody reads more, and drawing them takes long
_LARGEST_GRID = 16  # rows, columns
_BETWEEN = 2  # blanks between the columns of a table
_FUSION = "Factors 1 + gate by which fusion multiplies each token; 1.00 leaves it alone."
_BLOCKS = "Gates: factors of what each sublayer adds; 0.00 adds nothing, 1.00 all of it."
Format = Literal["table", "json"]

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, folder, weights file, hub id or preset:NAME.", show_default=True)
]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=("table", "json"), help="For people or for programs.")
]
Depth = Annotated[int, options.whole("--depth", minimum=1, help="Names deep that modules are shown.")]
_UNICODE = (r"[^\ud800-\udfff]*", "text in the encoding of the terminal")
Image = Annotated[
    str | None, options.text("--image", metavar="FILE", help="Caption this photo and show the model's gates.")
]
Prompt = Annotated[str | None, options.text("--prompt", "-p", matching=_UNICODE, help="First words of its caption.")]


def inspect(
    model: Reference = "mini",
    set_: options.Settings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    output_format: OutputFormat = "table",
    depth: Depth = 2,
    image: Image = None,
    prompt: Prompt = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of: modules, parameters, bytes."""
    from mmt_cli.inspection.summary import summarise

    if image is None and prompt is not None:
        raise UsageError(f"no image to caption (--prompt {shown(prompt)}, --image missing); add --image FILE")
    hub = console.hub_options(revision=revision, offline=offline, quiet=quiet)
    summary = summarise(model, options.parse_settings(set_ or []), hub)
    gates = None if image is None else _read_gates(model, image, prompt, hub)
    if output_format == "json":
        record = summary.to_json(depth) | ({} if gates is None else {"gates": gates.to_json()})
        console.emit(json.dumps(record) + "\n")
    elif gates is not None:
        _show_gates(gates)
    else:
        _show_summary(summary, depth)


def _read_gates(model: str, image: str, prompt: str | None, hub: "HubOptions") -> "GateReading":
    from mmt_cli.inspection.gates import read_gates

    return read_gates(model, image, prompt=prompt, hub=hub)


def _show_summary(summary: "Summary", depth: int) -> None:
    total, modalities = summary.total, summary.modalities()
    title = (
        f"{summary.model} ({summary.format}): {total.parameters:,} parameters, "
        f"{tables.quantity(total.nbytes, 'B')} in {len(summary.entries):,} tensors"
    )
    tables.show(
        tables.cell(title, style="bold"),
        _module_table(summary.tree(depth), total),
        *([_modality_table(modalities, total)] if modalities else []),
        *(tables.cell(f"{key}: {value}") for key, value in summary.metadata.items()),
    )


def _show_gates(reading: "GateReading") -> None:
    from rich.console import Console

    width = Console(file=sys.stdout).width
    gates_of = {scope: [gate for gate in reading.gates if gate.scope == scope] for scope in ("all", "text", "image")}
    tables.show(
        tables.cell(reading.caption, style="bold"),
        tables.cell(_FUSION if reading.gates[0].of_fusion else _BLOCKS),
        *([_constant_table(gates_of["all"])] if gates_of["all"] else []),
        *_word_tables(gates_of["text"], reading.tokens, width),
        *([_image_table(gates_of["image"])] if gates_of["image"] else []),
        *(grid for gate in gates_of["image"] if (grid := _grid(reading.cells(gate), width))),
    )


def _constant_table(gates: "Sequence[Gate]") -> "Table":
    table = tables.new_table("gate", "all tokens")
    for gate in gates:
        table.add_row(gate.name, *_decimals(gate.values))
    return table


def _word_tables(gates: "Sequence[Gate]", tokens: "Sequence[str]", width: int) -> "Iterator[Table]":
    """Yield tables with a column for each token, each table as wide as the terminal takes."""
    if not gates:
        return
    names = [gate.name for gate in gates]
    # A piece of blanks alone would leave a column without a name.
    heads = [tables.cell(token.strip() or repr(token)) for token in tokens]
    figures = [_decimals(values) for values in zip(*(gate.values for gate in gates), strict=True)]
    widths = [max(head.cell_len, *map(len, column)) for head, column in zip(heads, figures, strict=True)]
    for columns in _runs(widths, width - max(map(len, names))):
        table = tables.new_table("gate")
        for head in heads[columns]:
            table.add_column(head, justify="right", no_wrap=True)
        for name, *row in zip(names, *figures[columns], strict=True):
            table.add_row(name, *row)
        yield table


def _runs(widths: "Sequence[int]", room: int) -> "Iterator[slice]":
    """Yield the columns of each table in turn: as many as fit beside the names, at least one."""
    start = used = 0
    for index, width in enumerate(widths):
        if index > start and used + _BETWEEN + width > room:
            yield slice(start, index)
            start, used = index, 0
        used += _BETWEEN + width
    if widths:
        yield slice(start, len(widths))


def _image_table(gates: "Sequence[Gate]") -> "Table":
    table = tables.new_table("gate", "image tokens", "minimum", "mean", "maximum")
    for gate in gates:
        values = gate.values
        spread = (min(values), sum(values) / len(values), max(values))
        table.add_row(gate.name, str(len(values)), *_decimals(spread))
    return table


def _grid(cells: "Sequence[Sequence[float]]", width: int) -> "Text | None":
    """Return an image's values as they lie in the picture, where they can be taken in at a glance."""
    lines = [" ".join(_decimals(row)) for row in cells]
    if not lines or max(len(lines), len(cells[0])) > _LARGEST_GRID or len(lines[0]) > width:
        return None
    from rich.text import Text

    return Text("\n".join(lines))


def _decimals(values: "Iterable[float]") -> list[str]:
    return [f"{value:z.2f}" for value in values]


def _module_table(rows: "Sequence[Row]", total: "Part") -> "Table":
    table = tables.new_table("module", "modality", "parameters", "share", "dtype", "bytes", left=2)
    for row in rows[:_MOST_ROWS]:
        label = "  " * row.indent + row.label
        table.add_row(tables.cell(label), row.part.modality or "", *_figures(row.part, total))
    if len(rows) > _MOST_ROWS:
        table.add_row(f"… {len(rows) - _MOST_ROWS:,} more rows, all of them with -f json")
    table.add_section()
    table.add_row("total", "", *_figures(total, total), style="bold")
    return table


def _modality_table(modalities: "Sequence[Part]", total: "Part") -> "Table":
    table = tables.new_table("modality", "parameters", "share", "dtype", "bytes")
    for part in modalities:
        table.add_row(part.name, *_figures(part, total))
    return table


def _figures(part: "Part", total: "Part") -> tuple[str, str, str, str]:
    """Return the cells that all rows share; the share is of the parameters."""
    share = tables.share(part.parameters, total.parameters)
    return f"{part.parameters:,}", share, part.dtype, tables.quantity(part.nbytes, "B")
