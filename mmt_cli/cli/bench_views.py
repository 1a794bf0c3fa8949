"""The tables of `mmt bench`."""

import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmt_cli.cli import console, tables, views
from mmt_cli.cli.bench_options import Format
from mmt_cli.cli.views import Sheet, View
from mmt_cli.errors import OutputError

if TYPE_CHECKING:
    from mmt_cli.benchmark.comparison import Comparison
    from mmt_cli.benchmark.options import Case
    from mmt_cli.benchmark.report import Report, Result, Summary
    from mmt_cli.benchmark.results import LayerTimes

_SVG_COLUMNS = 110
_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # a drawing fetches nothing
_TIMES = ("calls", "ms", "p95 ms", "share")
_WORK = ("FLOPs", "FLOP/s", "rate", "bytes", "band", "memory")
_DISPENSABLE_TIMES = ("tokens", "theirs ms", "ours ms")
_DISPENSABLE = ("FLOP/s", "memory", "bytes", "FLOPs", "band")  # in this order, where a terminal is narrow
_GAP = 2  # blanks between columns


def show_report(report: "Report", output_format: Format) -> None:
    """Print a report to stdout."""
    if output_format == "jsonl":
        console.emit("".join(json.dumps(line) + "\n" for line in report.lines()))
        return
    endless = not sys.stdout.isatty() and "COLUMNS" not in os.environ  # then tables are as wide as they need
    whole = output_format == "md" or endless
    views.show(_view(report, width=None if whole else tables.width()), output_format)


def save_drawing(report: "Report", path: Path) -> None:
    """Draw what a wide terminal shows into an SVG.

    Raises:
        OutputError: the file cannot be written.
    """
    from rich.console import Console

    view = _view(report, width=_SVG_COLUMNS)
    out = Console(record=True, file=io.StringIO(), width=_SVG_COLUMNS, highlight=False, markup=False, emoji=False)
    out.print(tables.cell(view.title, style="bold"))
    for part in view.parts():
        out.print()
        out.print(views.drawn(part))
    svg = out.export_svg(title="mmt bench")
    try:
        path.write_text(_FONT.sub("", svg), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the drawing cannot be written ({path}: {error.strerror}); name another file") from error


def _view(report: "Report", *, width: int | None) -> View:
    return View(
        title=_title(report), parts=lambda: list(_parts(report, width)), records=report.rows, record=report.to_json
    )


def _title(report: "Report") -> str:
    """Return what was run, and where."""
    machine, settings = report.machine, report.settings
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    where = machine["gpu"] or f"{machine['processor']}, {threads}"
    models = {result.summary.case.model: result.summary.parameters for result in report.results}
    named = ", ".join(f"{model}, {parameters:,} parameters" for model, parameters in models.items())
    return (
        f"{settings['phase']} {named}, on {machine['device']} ({where}), {machine['dtype']}, torch {machine['torch']}"
    )


def _parts(report: "Report", width: int | None) -> Iterator[Sheet | str]:
    changed = [f"{key}={json.dumps(value)}" for key, value in report.settings["set"].items()]
    yield from [f"set {', '.join(changed)}"] if changed else []
    yield from [_machine(report)] if report.ceilings else []
    if len(report.results) > 1:
        yield _overview(report.results)
    for result in report.results:
        yield _figures(result.summary, many=len(report.results) > 1)
        yield from _steps(result.summary)
        if result.layers_apart:
            yield "steps are replayed as a graph, in which no layer can be timed: layers are of runs step by step"
        yield _fitted(_table(result), width, _DISPENSABLE)
    compared = [found for result in report.results for found in result.comparisons]
    if compared:
        yield f"against {compared[0].other}: the same weights, from the same pixels to tokens, in turn"
        yield _fitted(_comparisons(compared, tokens=True), width, _DISPENSABLE_TIMES)
    if report.baseline:
        yield f"against {report.baseline[0].other}"
        yield _fitted(_comparisons(report.baseline, tokens=False), width, _DISPENSABLE_TIMES)


def _machine(report: "Report") -> str:
    """Return what the machine can do at most, and its state."""
    most, machine = report.ceilings, report.machine
    assert most is not None, "without ceilings there is no such line"
    clock = machine["clocks"]["mhz"]
    state = [
        *([f"{clock:,.0f} MHz"] if clock and not machine["gpu"] else []),
        *([f"GPU clock {machine['gpu_state']['clocks.sm']}"] if machine["gpu_state"] else []),
        f"load {machine['load']:.1f}",
    ]
    return (
        f"at most, as measured: rate {tables.quantity(most.flops_per_s, 'FLOP/s')} ({machine['dtype']} matrices), "
        f"band {tables.quantity(most.bytes_per_s, 'B/s')} "
        f"(reading {tables.quantity(most.buffer_bytes, 'B')}); {', '.join(state)}"
    )


def _overview(results: "Sequence[Result]") -> Sheet:
    columns = ("model", "batch", "tokens", "images/s", "tokens/s", "first ms", "peak", "rate", "band")
    return Sheet(columns=columns, rows=[_overview_row(result.summary) for result in results])


def _overview_row(summary: "Summary") -> tuple[str, ...]:
    case = summary.case
    return (
        case.model,
        str(case.batch_size),
        _tokens(case),
        tables.figure(summary.images_per_s),
        _or_nothing(summary.tokens_per_s),
        _or_nothing(summary.ttft_ms),
        tables.quantity(summary.peak.main, "B"),
        _share(summary.mfu),
        _share(summary.bandwidth_utilisation),
    )


def _figures(summary: "Summary", *, many: bool) -> str:
    case, peak = summary.case, summary.peak
    of = f"{case.model}, {_tokens(case)} tokens, " if many else ""
    memory = f"peak {tables.quantity(peak.process, 'B')} process"
    figures = [
        f"{tables.figure(summary.images_per_s)} images/s",
        *([f"{tables.figure(summary.tokens_per_s)} tokens/s"] if summary.tokens_per_s else []),
        *([f"first token {tables.figure(summary.ttft_ms)} ms"] if summary.ttft_ms else []),
        *([f"cold start {tables.figure(summary.cold_start_ms)} ms"] if summary.cold_start_ms else []),
        *([f"{_share(summary.mfu)} of the rate"] if summary.mfu else []),
        *([f"decode {_share(summary.bandwidth_utilisation)} of the band"] if summary.bandwidth_utilisation else []),
        memory if peak.allocator is None else f"{memory}, {tables.quantity(peak.allocator, 'B')} allocator",
    ]
    return f"{of}batch {case.batch_size}: {', '.join(figures)}"


def _steps(summary: "Summary") -> Iterator[str]:
    """Say how the time of a step grows with what was written."""
    if summary.steps:
        found = (f"{step.first} to {step.last} {tables.figure(step.median_ms)} ms" for step in summary.steps)
        yield f"a step by the tokens written: {', '.join(found)}"


def _table(result: "Result") -> Sheet:
    """Return the phases as parts of the whole, and below each its layers as parts of one run of it.

    A phase that runs several times has a row for all of its runs, and one for a single run above its layers.
    """
    rows = []
    for part in result.parts:
        rows.append(_row(result, part, part.name))
        layers = [row for row in result.layers if row.phase == part.name]
        inner = "  "
        if layers and part.calls > 1:
            rows.append(_row(result, _one_run(result, part), "  each"))
            inner = "    "
        rows += [_row(result, row, inner + row.name.removeprefix(f"{part.name}.")) for row in layers]
    whole = _whole(result)
    return Sheet(
        columns=("part", *_TIMES, *(_WORK if result.summary.work else ())),
        rows=rows,
        total=_row(result, whole, whole.name),
    )


def _one_run(result: "Result", part: "LayerTimes") -> "LayerTimes":
    """Return one run of a phase that runs several times."""
    phase = next(phase for phase in result.phases if phase.name == part.name)
    work = part.work and dataclasses.replace(
        part.work, flops=part.work.flops // part.calls, nbytes=part.work.nbytes // part.calls
    )
    return dataclasses.replace(
        part, calls=1, median_ms=phase.median_ms, p95_ms=phase.p95_ms, share=part.share / part.calls, work=work
    )


def _whole(result: "Result") -> "LayerTimes":
    phase = result.phases[-1]
    return dataclasses.replace(
        result.parts[0],
        name=phase.name,
        calls=1,
        median_ms=phase.median_ms,
        p95_ms=phase.p95_ms,
        share=1.0,
        work=result.summary.work,
    )


def _row(result: "Result", row: "LayerTimes", label: str) -> tuple[str, ...]:
    times = str(row.calls), tables.figure(row.median_ms), tables.figure(row.p95_ms), tables.share(row.share, 1)
    if row.work is None:
        return (label, *times)
    flops_per_s, bytes_per_s = row.rate(row.work.flops), row.rate(row.work.nbytes)
    most = result.ceilings
    cells = {
        "FLOPs": tables.quantity(row.work.flops) if row.work.flops else "",
        "FLOP/s": tables.quantity(flops_per_s) if flops_per_s else "",
        "rate": _share(flops_per_s / most.flops_per_s if most and flops_per_s else None),
        "bytes": tables.quantity(row.work.nbytes, "B") if row.work.nbytes else "",
        "band": _share(bytes_per_s / most.bytes_per_s if most and bytes_per_s else None),
        "memory": tables.quantity(row.work.peak, "B") if row.work.peak else "",
    }
    return (label, *times, *(cells[name] for name in _WORK))


def _fitted(sheet: Sheet, width: int | None, dispensable: Sequence[str]) -> Sheet:
    """Return a table without the columns, the first of these first, that a terminal of this width has no room for."""
    columns = list(sheet.columns)  # their heads are unlike
    every = [sheet.columns, *sheet.rows, *([sheet.total] if sheet.total else [])]
    longest = dict(zip(columns, (max(map(len, cells)) for cells in zip(*every, strict=True)), strict=True))
    for name in dispensable:
        if width is None or sum(longest[kept] + _GAP for kept in columns) - _GAP <= width:
            break
        columns = [kept for kept in columns if kept != name]
    places = [sheet.columns.index(name) for name in columns]

    def cut(row: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(row[place] for place in places)

    rows, total = [cut(row) for row in sheet.rows], cut(sheet.total) if sheet.total else None
    return dataclasses.replace(sheet, columns=tuple(columns), rows=rows, total=total)


def _comparisons(found: "Sequence[Comparison]", *, tokens: bool) -> Sheet:
    rows = []
    for each in found:
        record, case = each.to_json(), each.case
        equal = f"{each.equal_tokens} of {each.tokens}" if tokens else None
        rows.append(
            (
                case.model,
                each.name,
                str(case.batch_size),
                _tokens(case),
                tables.figure(record["ours_ms"]),
                tables.figure(record["theirs_ms"]),
                f"{each.ratio.value:.2f} x",
                f"{each.ratio.low:.2f} to {each.ratio.high:.2f}",
                *([equal] if equal else []),
            )
        )
    columns = ("model", "time of", "batch", "tokens", "ours ms", "theirs ms", "as fast", "95 % of it")
    return Sheet(columns=(*columns, *(["equal"] if tokens else [])), rows=rows, left=2)


def _tokens(case: "Case") -> str:
    return f"{case.prompt_tokens} + {case.gen_tokens}"


def _or_nothing(number: float | None) -> str:
    return "" if number is None else tables.figure(number)


def _share(part: float | None) -> str:
    return "" if part is None else tables.share(part, 1)
