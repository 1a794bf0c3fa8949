"""`mmt caption --dry-run`: a line for each image, and what the run would take; no model is run."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import typer

from mmt_cli.captioning.dry_run import Look, look
from mmt_cli.captioning.items import Item
from mmt_cli.captioning.memory import best_batch_size, image_bytes
from mmt_cli.captioning.overrides import override
from mmt_cli.captioning.reading import ReadAhead
from mmt_cli.captioning.writers import csv_row, escape_field
from mmt_cli.checkpoint.parts import load_generation, load_preprocessing
from mmt_cli.checkpoint.reference import Source, open_reference
from mmt_cli.cli import console
from mmt_cli.cli.caption_request import Request
from mmt_cli.cli.tables import quantity
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.inputs.image import MAX_PIXELS

_COLUMNS = ("path", "readable", "format", "mode", "width", "height", "orientation", "tiles", "tokens", "error")
_WIDTHS = {"readable": 8, "mode": 7, "size": 13, "orientation": 11, "tokens": 6}


def dry_run(request: Request, items: Iterator[Item]) -> None:
    """Print a line for each image, and what captioning them would take.

    Raises:
        typer.Exit: with code 3, when an image cannot be read.
    """
    source = open_reference(
        request.model,
        console.hub_options(revision=request.revision, offline=request.offline, quiet=request.quiet),
    )
    how = load_preprocessing(source)
    how = how.without_split() if request.no_split else how
    workers = request.workers or min(os.cpu_count() or 1, 8)
    reading = ReadAhead(
        items,
        lambda item: look(item, source.config, how, max_pixels=request.max_pixels or MAX_PIXELS),
        workers=workers,
        ahead=4 * workers,
    )
    line_of, header = _layout(request.output_format)
    console.emit(header)
    good = bad = 0
    most_tiles = 1
    try:
        while (taken := reading.take()) is not None:
            item, found = taken
            console.emit(line_of(item.path, found))
            good += found.error is None
            bad += found.error is not None
            most_tiles = max(most_tiles, found.tiles)
    finally:
        reading.close()
    if not request.quiet:
        console.note(f"mmt: {good} readable, {bad} not; {_memory(request, source, most_tiles)}; no model was run")
    if bad:
        raise typer.Exit(3)


def _memory(request: Request, source: Source, tiles: int) -> str:
    """Say how much memory the run would take, roughly."""
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    numbers = sum(_count(info.shape) for info in source.infos.values())
    generation = override(load_generation(source), {"num_captions": 1, **request.generation})
    how = load_preprocessing(source)
    each = image_bytes(source.config, how, generation, tiles=tiles, size=dtype.itemsize)
    batch = best_batch_size(each, device) if request.batch_size == "auto" else int(request.batch_size)
    weights = numbers * dtype.itemsize
    parts = f"weights {quantity(weights, 'B')}, each of {batch} images at a time {quantity(each, 'B')}"
    return f"captioning them takes about {quantity(weights + batch * each, 'B')} ({parts})"


def _count(shape: tuple[int, ...]) -> int:
    numbers = 1
    for side in shape:
        numbers *= side
    return numbers


def _layout(kind: str) -> tuple[Callable[[str, Look], str], str]:
    """Return what makes a line of an image, and what stands above the first."""
    if kind == "jsonl":
        return lambda path, found: json.dumps(_fields(path, found)) + "\n", ""
    if kind == "csv":
        return lambda path, found: csv_row(_fields(path, found).values()), csv_row(_COLUMNS)
    if kind == "tsv":
        return lambda path, found: _tabs(_fields(path, found).values()), _tabs(_COLUMNS)
    return _row, "".join(name.ljust(width + 2) for name, width in _WIDTHS.items()) + "path\n"


def _fields(path: str, found: Look) -> dict[str, Any]:
    facts = found.facts
    return {
        "path": path,
        "readable": found.error is None,
        "format": facts and facts.format,
        "mode": facts and facts.mode,
        "width": facts and facts.width,
        "height": facts and facts.height,
        "orientation": facts and facts.orientation,
        "tiles": found.tiles or None,
        "tokens": found.tokens or None,
        "error": found.error and f"{found.error.kind}: {found.error}",
    }


def _tabs(values: Any) -> str:
    return "\t".join(escape_field("" if value is None else str(value)) for value in values) + "\n"


def _row(path: str, found: Look) -> str:
    """Return a line for people: columns, and the path and why it cannot be read behind them."""
    facts = found.facts
    cells = {"readable": "yes" if facts else "no", "mode": "", "size": "", "orientation": "", "tokens": ""}
    if facts:
        cells |= {"mode": facts.mode, "size": f"{facts.width} x {facts.height}"}
        cells |= {"orientation": str(facts.orientation), "tokens": str(found.tokens)}
    reason = f"  ({found.error.kind}: {str(found.error).removeprefix(f'{path} ')})" if found.error else ""
    return "".join(cells[name].ljust(width + 2) for name, width in _WIDTHS.items()) + escape_field(path + reason) + "\n"
