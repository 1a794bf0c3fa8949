"""`mmt inspect`: parses, calls, prints."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmt_cli.cli import console, options, tables

if TYPE_CHECKING:
    from rich.table import Table

    from mmt_cli.inspection.summary import Part, Row

_MOST_ROWS = 1000  # nobody reads more, and drawing them takes long
Format = Literal["table", "json"]

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, folder, .safetensors file or preset:NAME.", show_default=True)
]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=("table", "json"), help="For people or for programs.")
]
Depth = Annotated[int, options.whole("--depth", minimum=1, help="Names deep that modules are shown.")]


def inspect(
    model: Reference = "mini",
    set_: options.Settings = None,
    output_format: OutputFormat = "table",
    depth: Depth = 2,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of: modules, parameters, bytes."""
    from mmt_cli.inspection.summary import summarise

    summary = summarise(model, options.parse_settings(set_ or []))
    if output_format == "json":
        console.emit(json.dumps(summary.to_json(depth)) + "\n")
        return
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
