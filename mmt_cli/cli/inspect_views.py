"""What `mmt inspect` shows of a model, for every format."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mmt_cli.cli import tables
from mmt_cli.cli.views import MOST_ROWS, Lines, Sheet, View

if TYPE_CHECKING:
    from mmt_cli.inspection.check import Report
    from mmt_cli.inspection.contents import Contents
    from mmt_cli.inspection.diff import Difference
    from mmt_cli.inspection.stats import Stats
    from mmt_cli.inspection.summary import Part, Summary
    from mmt_cli.inspection.tokens import Reading, Token

_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_TOLD = "sha256 as the hub tells it of files that are not in the cache"
_WIDE = 100  # columns from which on there is room for columns that not everybody needs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What of a summary is shown: modules so many names deep or each tensor, the settings, the weights' hashes."""

    depth: int
    tensors: bool
    config: bool
    sha256: bool


def summary_view(contents: "Contents", summary: "Summary", asked: Asked) -> View:
    """Return modules or tensors, modalities, and what else is asked for."""
    digests = contents.sha256() if asked.sha256 else None
    total = summary.total
    size = tables.quantity(total.nbytes, "B")
    more: dict[str, Any] = {"config": contents.config} if asked.config else {}
    more |= {} if digests is None else {"sha256": digests}

    def parts() -> list[Sheet | Lines | str]:
        modalities = summary.modalities()
        return [
            _tensors(summary) if asked.tensors else _modules(summary, asked.depth),
            *([_modalities(modalities, total)] if modalities else []),
            *([_settings(contents.config)] if asked.config else []),
            *([Sheet(columns=("file", "sha256"), rows=list(digests.items()), left=2)] if digests else []),
            *([_TOLD] if digests and contents.told else []),
            *([_metadata(summary.metadata)] if summary.metadata else []),
        ]

    return View(
        title=f"{summary.model} ({summary.format}): {total.parameters:,} parameters, {size} in "
        f"{len(summary.entries):,} tensors",
        parts=parts,
        records=lambda: (
            [entry.to_json() for entry in summary.entries]
            if asked.tensors
            else [part.to_json() for part in summary.modules(asked.depth)]
        ),
        record=lambda: summary.to_json(asked.depth) | more,
    )


def _is_wide() -> bool:
    """Say whether there is room for columns that not everybody needs."""
    return tables.is_endless() or tables.width() >= _WIDE


def _modules(summary: "Summary", depth: int) -> Sheet:
    total, wide = summary.total, _is_wide()

    def row(name: str, part: "Part") -> tuple[str, ...]:
        return (name, part.modality or "", *([_shape(part.shape)] if wide else []), *_figures(part, total))

    rows = [row("  " * found.indent + found.label, found.part) for found in summary.tree(depth)]
    columns = ("module", "modality", *(["shape"] if wide else []), "parameters", "share", "dtype", "bytes")
    end = ("total", "", *([""] if wide else []), *_figures(total, total))
    return Sheet(columns=columns, rows=rows, left=2, total=end)


def _tensors(summary: "Summary") -> Sheet:
    rows = [
        (e.info.name, e.modality or "", e.info.dtype, _shape(e.info.shape), tables.quantity(e.info.nbytes, "B"))
        for e in summary.ordered
    ]
    return Sheet(columns=("tensor", "modality", "dtype", "shape", "bytes"), rows=rows, left=2)


def _modalities(modalities: "Sequence[Part]", total: "Part") -> Sheet:
    rows = [(part.name, *_figures(part, total)) for part in modalities]
    return Sheet(columns=("modality", "parameters", "share", "dtype", "bytes"), rows=rows)


def _metadata(metadata: Mapping[str, str]) -> Lines:
    """Return a line for each entry; a header has room for a million."""
    more = len(metadata) - MOST_ROWS
    rest = [f"… {more:,} more entries, all of them with -f json"] if more > 0 else []
    return Lines(lines=[*(f"{key}: {value}" for key, value in islice(metadata.items(), MOST_ROWS)), *rest])


def _figures(part: "Part", total: "Part") -> tuple[str, str, str, str]:
    """Return the cells that all rows share; the share is of the parameters."""
    share = tables.share(part.parameters, total.parameters)
    return f"{part.parameters:,}", share, part.dtype, tables.quantity(part.nbytes, "B")


def _shape(shape: Sequence[int] | None) -> str:
    return "" if shape is None else "scalar" if not shape else " x ".join(map(str, shape))


def _settings(config: Mapping[str, Any] | None) -> Sheet | str:
    if config is None:
        return "config: none beside the weights"
    return Sheet(columns=("setting", "value"), rows=list(_flat(config, "")), left=2)


def _flat(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted names of a config's values, and these as JSON."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(node, ensure_ascii=False)


def check_view(report: "Report") -> View:
    """Return what is wrong, a line each."""
    count = len(report.findings)
    verdict = f"{count} finding{'s' if count != 1 else ''}" if count else "sound"
    lines = [
        f"{found.part}: {'' if found.tensor is None else tables.short(found.tensor) + ' '}{found.message}"
        for found in report.findings
    ]
    return View(
        title=f"{report.model} ({report.format or 'unknown'}): {verdict} in {report.tensors:,} tensors and around them",
        parts=lambda: [Lines(lines=lines)] if lines else [],
        records=lambda: [found.to_json() for found in report.findings],
        record=report.to_json,
    )


def stats_view(contents: "Contents", rows: "Sequence[Stats]", *, tensors: bool) -> View:
    """Return how large the numbers are, and how they are spread."""

    def parts() -> list[Sheet | Lines | str]:
        odd = [
            f"{row.name}: {row.moments.nan:,} NaN, {row.moments.infinite:,} Inf"
            for row in rows
            if row.moments.nan or row.moments.infinite
        ]
        columns = ("tensor" if tensors else "module", "mean", "std", "min", "max", "zeros", "mean ± 3 std")
        return [Sheet(columns=columns, rows=[_spread(row) for row in rows]), *([Lines(lines=odd)] if odd else [])]

    return View(
        title=f"{contents.name} ({contents.format}): the numbers of its {'tensors' if tensors else 'modules'}",
        parts=parts,
        records=lambda: [row.to_json() for row in rows],
        record=lambda: {
            "model": contents.name,
            "format": contents.format,
            "stats": [row.to_json() for row in rows],
        },
    )


def _spread(row: "Stats") -> tuple[str, ...]:
    found = row.moments
    if not found.count:
        return (row.name, "", "", "", "", "", "")
    figures = (found.mean, found.std, found.minimum, found.maximum)
    return (row.name, *(f"{figure:.3g}" for figure in figures), tables.share(row.zeros, 1), drawn(row.histogram))


def drawn(counts: Sequence[int]) -> str:
    """Return a histogram as a text of a character for each bin; plain ASCII where stdout takes nothing else."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
        levels = _BLOCKS
    except (UnicodeEncodeError, LookupError):
        levels = _ASCII
    most, steps = max(counts, default=0) or 1, len(levels) - 1
    return "".join(levels[-(-count * steps // most)] for count in counts)


def diff_view(here: "Contents", there: "Contents", rows: "Sequence[Difference]") -> View:
    """Return what is the same, what has changed, and what only one has."""
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(r.status for r in rows)}
    told = ", ".join(f"{count:,} {status}" for status, count in counts.items()) or "nothing to compare"
    wide = _is_wide()
    columns = ("module", "status", *(("modality", "parameters") if wide else ()), "relative L2", "cosine", "max")
    return View(
        title=f"{here.name} ({here.format}) and {there.name} ({there.format}): {told}",
        parts=lambda: [Sheet(columns=columns, rows=[_distance(row, wide=wide) for row in rows], left=3 if wide else 2)],
        records=lambda: [row.to_json() for row in rows],
        record=lambda: {"model": here.name, "other": there.name, "modules": [row.to_json() for row in rows]},
    )


def _distance(row: "Difference", *, wide: bool) -> tuple[str, ...]:
    status: str = "same, rounded" if row.is_rounded else row.status
    if row.shapes is not None:
        status = f"{_shape(row.shapes[0])}, there {_shape(row.shapes[1])}"
    start = (row.name, status, *((row.modality or "", f"{row.parameters:,}") if wide else ()))
    found = row.distance
    if found is None or found.equal or not found.count:
        return (*start, "", "", "")
    return (*start, f"{found.relative:.3g}", f"{found.cosine:.6f}", f"{found.largest:.3g}")


def tokens_view(reading: "Reading") -> View:
    """Return the tokens of a text, and the prompt around it."""

    def parts() -> list[Sheet | Lines | str]:
        rows = [
            (token.piece or "", _between(token, reading.text), token.kind, _places(token), str(token.id))
            for token in reading.tokens
        ]
        encoder = reading.encoder_prompt
        where = "in the prompt" if reading.in_prompt else "beside the text"
        tiles = f" of {reading.tiles} tiles" if reading.tiles > 1 else ""
        return [
            Sheet(columns=("piece", "text", "kind", "place", "id"), rows=rows, left=3),
            *(() if encoder is None else ("The encoder reads:", _prompt(encoder))),
            "The model goes on from:" if encoder is None else "The answer goes on from:",
            _prompt(reading.prompt),
            Lines(
                lines=[
                    f"image: {reading.image_tokens:,} tokens{tiles}, {where}",
                    f"context: {len(reading.prompt):,} of {reading.room:,} tokens taken",
                    *(f"{role}: {content}" for role, content in reading.specials.items()),
                ]
            ),
        ]

    return View(
        title=f"{reading.model}: {len(reading.tokens):,} token{'s' * (len(reading.tokens) != 1)}",
        parts=parts,
        records=lambda: [token.to_json() for token in reading.tokens],
        record=reading.to_json,
    )


def _between(token: "Token", text: str) -> str:
    return "" if token.start is None else text[token.start : token.stop]


def _places(token: "Token") -> str:
    return "" if token.start is None else f"{token.start}-{token.stop}"


def _prompt(tokens: "Sequence[Token]") -> Sheet:
    """Return a prompt; what stands there many times in a row, as an image's places do, takes one line."""
    runs: list[tuple[Token, int]] = []
    for token in tokens:
        if runs and runs[-1][0].id == token.id:
            runs[-1] = (token, runs[-1][1] + 1)
        else:
            runs.append((token, 1))
    rows = [(token.piece or "", token.kind, str(token.id), f"{count:,}") for token, count in runs]
    return Sheet(columns=("piece", "kind", "id", "times"), rows=rows, left=2)


def saved_view(folder: str, files: Sequence[tuple[str, int]]) -> View:
    """Return what has been written."""
    total = sum(size for _, size in files)
    rows = [(name, tables.quantity(size, "B")) for name, size in files]
    records = [{"name": name, "bytes": size} for name, size in files]
    return View(
        title=f"{folder}: {tables.quantity(total, 'B')} in {len(files)} file{'s' * (len(files) != 1)}",
        parts=lambda: [Sheet(columns=("file", "bytes"), rows=rows)],
        records=lambda: records,
        record=lambda: {"saved": folder, "bytes": total, "files": records},
    )
