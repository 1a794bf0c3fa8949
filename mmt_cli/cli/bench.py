"""`mmt bench`: parses, calls, prints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmt_cli.cli import console, options, tables
from mmt_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from mmt_cli.benchmark.results import BatchResult, LayerTimes, PhaseTimes, Report

Format = Literal["table", "json"]
Phase = Literal["caption", "train"]

_SIZES = (r"[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*", "whole numbers from 1, joined by commas")
_WORK = {"section": "Work"}

Positional = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="What to time; preset:NAME has random weights.", show_default=False),
]
Model = Annotated[
    str | None,
    options.text(
        "--model", "-m", metavar="MODEL", section=options.MODEL, help="The same as an option.  [default: mini]"
    ),
]
PhaseName = Annotated[
    Phase, options.choice("--phase", choices=("caption", "train"), help="A caption, or a training step.", **_WORK)
]
ImageFile = Annotated[
    str | None, options.text("--image", metavar="FILE", help="Image to caption.  [default: a made-up JPEG]", **_WORK)
]
BatchSizes = Annotated[
    str, options.text("--batch-size", "-b", metavar="N,N", matching=_SIZES, help="Images at a time.", **_WORK)
]
PromptTokens = Annotated[int, options.whole("--prompt-tokens", minimum=1, help="Length of the random prompt.", **_WORK)]
GenTokens = Annotated[
    int, options.whole("--gen-tokens", minimum=1, help="New tokens; train reads prompt + new tokens.", **_WORK)
]
Repetitions = Annotated[
    int, options.whole("--repetitions", "-r", minimum=1, section=options.RUN, help="Captions or steps that are timed.")
]
Warmup = Annotated[int, options.whole("--warmup", minimum=0, section=options.RUN, help="Those before these.")]
Layers = Annotated[bool, options.flag("--layers/--no-layers", section=options.RUN, help="Time layers, by hooks.")]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=("table", "json"), help="For people or for programs.")
]


def bench(
    reference: Positional = None,
    model: Model = None,
    set_: options.Settings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    phase: PhaseName = "caption",
    image: ImageFile = None,
    batch_size: BatchSizes = "1",
    prompt_tokens: PromptTokens = 2,
    gen_tokens: GenTokens = 20,
    repetitions: Repetitions = 5,
    warmup: Warmup = 2,
    layers: Layers = True,
    output_format: OutputFormat = "table",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time a model, phase by phase and layer by layer: captions, or steps of training."""
    if reference and model:
        raise UsageError(f"two models (MODEL {reference!r} and --model {model!r}); name one")

    from mmt_cli.benchmark.options import BenchOptions
    from mmt_cli.benchmark.run import run_benchmark
    from mmt_cli.device import keep_freed_memory, set_threads

    keep_freed_memory()
    set_threads(threads)
    wanted = BenchOptions(
        model=reference or model or "mini",
        settings=options.parse_settings(set_ or []),
        hub=console.hub_options(revision=revision, offline=offline, quiet=quiet),
        phase=phase,
        image=Path(image) if image else None,
        batch_sizes=tuple(int(size) for size in batch_size.split(",")),
        prompt_tokens=prompt_tokens,
        gen_tokens=gen_tokens,
        repetitions=repetitions,
        warmup=warmup,
        layers=layers,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    report = run_benchmark(wanted, note=(lambda _: None) if quiet else console.note)
    if output_format == "json":
        console.emit(json.dumps(report.to_json()) + "\n")
    else:
        _show(report)


def _show(report: "Report") -> None:
    parts: list[Table | Text] = [tables.cell(_title(report), style="bold")]
    changed = [f"{key}={json.dumps(value)}" for key, value in report.settings["set"].items()]
    parts += [tables.cell(f"set {', '.join(changed)}")] if changed else []
    for batch in report.batches:
        parts += [tables.cell(_figures(batch)), _phase_table(batch)]
        parts += [_layer_table(batch)] if batch.layers else []
    tables.show(*parts)


def _title(report: "Report") -> str:
    """Return what was run: phase, model and machine."""
    machine, settings = report.machine, report.settings
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    where = machine["gpu"] or f"{machine['processor']}, {threads}"
    parameters = report.batches[0].summary.parameters
    return (
        f"{settings['phase']} {settings['model']}, {parameters:,} parameters, "
        f"on {machine['device']} ({where}), {machine['dtype']}, torch {machine['torch']}"
    )


def _figures(batch: "BatchResult") -> str:
    summary = batch.summary
    figures = [
        f"{tables.figure(summary.images_per_s)} images/s",
        *([f"{tables.figure(summary.tokens_per_s)} tokens/s"] if summary.tokens_per_s else []),
        *([f"first token {tables.figure(summary.ttft_ms)} ms"] if summary.ttft_ms else []),
        f"peak {tables.quantity(summary.peak_memory_bytes, 'B')}",
    ]
    return f"batch {summary.batch_size}: {', '.join(figures)}"


def _phase_table(batch: "BatchResult") -> "Table":
    """Return the phases as parts of the whole: calls a run; times a call; the share of a run's time; its FLOPs."""
    *phases, whole = batch.phases
    by_name = {phase.name: phase for phase in phases}
    work = ["FLOPs"] if batch.layers else []
    table = tables.new_table("phase", "calls", "median ms", "p95 ms", "min ms", "share", *work)
    for part in batch.parts:
        times = by_name.get(part.name)
        cells = _times(times) if times else (tables.figure(part.median_ms), tables.figure(part.p95_ms), "")
        table.add_row(part.name, str(part.calls), *cells, tables.share(part.share, 1), *_flops(part.flops))
    table.add_section()
    total = _flops(batch.summary.flops)
    table.add_row(whole.name, "1", *_times(whole), tables.share(1, 1), *total, style="bold")
    return table


def _flops(count: int | None) -> list[str]:
    """Return the cell, or none where nothing was counted."""
    return [] if count is None else [tables.quantity(count)]


def _times(phase: "PhaseTimes") -> tuple[str, str, str]:
    return tables.figure(phase.median_ms), tables.figure(phase.p95_ms), tables.figure(min(phase.samples_ms))


def _layer_table(batch: "BatchResult") -> "Table":
    """Return the layers below the phase that they add up to."""
    table = tables.new_table("layer", "calls", "median ms", "p95 ms", "share", "FLOPs", "weights")
    for phase in batch.phases:
        rows = [row for row in batch.layers if row.phase == phase.name]
        if rows:
            work = _work([row.flops for row in rows], [row.nbytes for row in rows])
            median, p95, _ = _times(phase)
            table.add_section()
            table.add_row(phase.name, "1", median, p95, tables.share(1, 1), *work, style="bold")
        for row in rows:
            label = row.name.removeprefix(f"{phase.name}.")
            table.add_row(tables.cell(f"  {label}"), *_layer_cells(row))
    return table


def _layer_cells(row: "LayerTimes") -> tuple[str, ...]:
    times = tables.figure(row.median_ms), tables.figure(row.p95_ms), tables.share(row.share, 1)
    return str(row.calls), *times, *_work([row.flops], [row.nbytes])


def _work(flops: list[int | None], nbytes: list[int | None]) -> tuple[str, str]:
    return tables.quantity(sum(n or 0 for n in flops)), tables.quantity(sum(n or 0 for n in nbytes), "B")
