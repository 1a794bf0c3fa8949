"""What `mmt inspect --image` shows of a model's gates."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mmt_cli.cli import tables

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from mmt_cli.inspection.gates import Gate, GateReading

_LARGEST_GRID = 16  # rows, columns
_BETWEEN = 2  # blanks between the columns of a table
_FUSION = "Factors 1 + gate by which fusion multiplies each token; 1.00 leaves it alone."
_BLOCKS = "Gates: factors of what each sublayer adds; 0.00 adds nothing, 1.00 all of it."


def show_gates(reading: "GateReading") -> None:
    """Print a photo's caption, and for every word and image token how far each gate was open."""
    width = tables.width()
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
