"""One run of `mmt caption`: opens what is read and written, loads the model, and ends with a summary."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.job import Tally
from mmt_cli.captioning.output import OutputFile
from mmt_cli.captioning.overrides import SAMPLING, override
from mmt_cli.captioning.sidecars import Sidecar
from mmt_cli.captioning.writers import Layout
from mmt_cli.cli import caption_inputs, console, garbage
from mmt_cli.cli.caption_request import Request
from mmt_cli.cli.caption_sink import CaptionSink
from mmt_cli.cli.stopping import Stopping
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError

if TYPE_CHECKING:
    from mmt_cli.captioning.captioner import Captioner
    from mmt_cli.captioning.report import Report


def run(request: Request) -> None:
    """Caption what is asked for.

    Raises:
        MmtError: it cannot be done, or not all of it.
        typer.Exit: with code 3, when an image failed.
    """
    # Whatever is wrong with the command itself is said before seconds go into loading a model.
    _check_generation(request.generation)
    sidecar = Sidecar(request.sidecar_ext, request.if_exists) if request.sidecar else None
    if request.dry_run:
        from mmt_cli.cli.caption_dry_run import dry_run

        dry_run(request, caption_inputs.find(request, ()))
        return
    layout = Layout(
        kind=request.output_format,
        single=request.single,
        captions_per_item=request.num_captions or 1,
        grounded=request.grounding,
    )
    with contextlib.ExitStack() as held:
        if request.single:
            held.enter_context(garbage.left_alone())  # the process is over before there is any to speak of
        output = None
        if request.output is not None:
            output = held.enter_context(OutputFile(request.output, layout=layout, resume=request.resume))
        report = _open_report(request)
        if report:
            held.callback(report.abandon)  # which does nothing once it is closed
            if output and report.identity == output.identity:
                raise UsageError(f"two results cannot be one file (--output and --report {request.report}); name two")
        written = [file.identity for file in (output, report) if file is not None] + console.files_of_stdout()
        found, max_failures = caption_inputs.limit_failures(caption_inputs.find(request, written), request.max_errors)
        _caption(request, found, layout, output=output, report=report, sidecar=sidecar, max_failures=max_failures)


def _check_generation(given: dict[str, Any]) -> None:
    """Refuse values out of bounds, and those that exclude each other whatever the checkpoint's defaults."""
    lenient: dict[str, Any] = {"max_new_tokens": 1_000_000}
    if "num_captions" in given and not given.keys() & {"num_beams", *SAMPLING}:
        lenient["num_beams"] = max(given["num_captions"], 1)
    override(GenerationOptions(**lenient), given)


def _caption(
    request: Request,
    found: Iterator[Item],
    layout: Layout,
    *,
    output: OutputFile | None,
    report: "Report | None",
    sidecar: Sidecar | None,
    max_failures: int | None,
) -> None:
    with garbage.left_alone():
        from mmt_cli.captioning.run import caption_images
        from mmt_cli.cli.caption_setup import Summary, in_background, load, run_options

        start = time.perf_counter()
        captioner = load(request)
    options = run_options(request, captioner, sidecar, max_failures=max_failures, thumbnails=report is not None)
    # Hashed beside the first batch, where records name the weights.
    hashed = output is not None or request.output_format in ("jsonl", "csv")
    name = in_background(captioner.fingerprint) if hashed else lambda: captioner.name
    with Stopping() as stopping, console.Progress(quiet=request.quiet) as progress:

        def begin() -> None:
            if output and not output.started:
                output.start(_settings(request, layout, captioner, options.generation, model=name()))

        if output and not output.fresh:
            begin()  # says what is done already
        sink = CaptionSink(
            layout,
            progress=progress,
            output=output,
            begin=begin,
            report=report,
            prefix=request.prefix,
            suffix=request.suffix,
        )
        tally, loaded = Tally(), time.perf_counter()
        items = _left_to_do(found, tally, output, sidecar)
        try:
            caption_images(captioner, items, options, model=name, sink=sink, tally=tally, stopping=stopping)
            sink.begin()  # a file of no records is a result, too
            sink.commit()
        finally:
            summary = Summary(tally, captioner, loading=loaded - start, running=time.perf_counter() - loaded)
            if report:
                report.close(summary.fields)
            if not request.quiet and tally.done + tally.failed + tally.skipped:
                progress.note(summary.line)
        stopping.end(_how_to_go_on(request, tally))
    if tally.failed:
        raise typer.Exit(3)


def _open_report(request: Request) -> "Report | None":
    if request.report is None:
        return None
    from mmt_cli.captioning.report import Report

    report = Report(request.report, title="Captions", settings=request.given)
    report.open()
    return report


def _left_to_do(
    items: Iterator[Item], tally: Tally, output: OutputFile | None, sidecar: Sidecar | None
) -> Iterator[Item]:
    """Leave out what an earlier run has done; called in the thread that lists."""
    # Where a file is gone on with, it alone decides: a killed run may have left a sidecar whose record is not in it.
    resumed = output is not None and not output.fresh
    for item in items:
        done = output is not None and output.take(item.path)
        there = sidecar is not None and item.file is not None and not sidecar.wanted(item.file)
        if done or (there and not resumed):
            tally.skipped += 1
        else:
            yield item


def _settings(
    request: Request, layout: Layout, captioner: "Captioner", generation: GenerationOptions, *, model: str
) -> dict[str, Any]:
    """Return all that makes a record what it is, by which a file is gone on with or not."""
    return {
        "model": model,
        "prompt": request.prompt,
        "system": request.system,
        "split": not request.no_split,
        "dtype": str(captioner.dtype).removeprefix("torch."),
        "quantize": request.quantize,
        "prefix": request.prefix,
        "suffix": request.suffix,
        "seed": request.seed,
        "image": request.paths[0] if layout.bare and request.paths else None,
        **generation.to_json(),
    }


def _how_to_go_on(request: Request, tally: Tally) -> str:
    if request.output is not None:
        again = "the same command goes on" if request.resume else "the same command with --resume goes on"
        return f"after {tally.done + tally.failed} images; {again}"
    if request.sidecar and request.if_exists == "skip":
        return f"after {tally.done + tally.failed} images; the same command goes on with the others"
    return f"after {tally.done + tally.failed} images; with --output FILE a run can be gone on with"
