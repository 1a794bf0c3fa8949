"""`mmt inspect`: parses, calls, prints."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmt_cli.cli import console, options, tables

if TYPE_CHECKING:
    from rich.table import Table

    from mmt_cli.inspection.summary import Part, Summary

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
    output_format: OutputFormat = "table",
    depth: Depth = 2,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of: modules, parameters, bytes."""
    from mmt_cli.inspection.summary import summarise

    summary = summarise(model)
    if output_format == "json":
        console.emit(json.dumps(summary.to_json(depth)) + "\n")
        return
    total = summary.total
    title = (
        f"{summary.model} ({summary.format}): {total.parameters:,} parameters, "
        f"{tables.quantity(total.nbytes, 'B')} in {len(summary.entries):,} tensors"
    )
    lines = [f"{key}: {value}" for key, value in summary.metadata.items()]
    tables.show(
        tables.cell(title, style="bold"),
        _module_table(summary, depth),
        *([_modality_table(summary)] if summary.modalities() else []),
        *(tables.cell(line) for line in lines),
    )


def _module_table(summary: "Summary", depth: int) -> "Table":
    table = tables.new_table("module", "modality", "parameters", "share", "dtype", "bytes", left=2)
    rows = summary.tree(depth)
    for row in rows[:_MOST_ROWS]:
        label = "  " * row.indent + row.label
        table.add_row(tables.cell(label), row.part.modality or "", *_figures(row.part, summary))
    if len(rows) > _MOST_ROWS:
        table.add_row(f"… {len(rows) - _MOST_ROWS:,} more rows, all of them with -f json")
    table.add_section()
    table.add_row("total", "", *_figures(summary.total, summary), style="bold")
    return table


def _modality_table(summary: "Summary") -> "Table":
    table = tables.new_table("modality", "parameters", "share", "dtype", "bytes")
    for part in summary.modalities():
        table.add_row(part.name, *_figures(part, summary))
    return table


def _figures(part: "Part", summary: "Summary") -> tuple[str, str, str, str]:
    """Return the cells that all rows share; the share is of the parameters."""
    parameters = summary.total.parameters
    return (
        f"{part.parameters:,}",
        tables.share(part.parameters, parameters),
        part.dtype,
        tables.quantity(part.nbytes, "B"),
    )
