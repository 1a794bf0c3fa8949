"""One case: a workload is timed phase by phase, layer by layer, and then counted."""

from contextlib import nullcontext
from typing import Any

import torch

from mmt_cli.benchmark.caption import FIRST_TOKEN
from mmt_cli.benchmark.ceilings import Ceilings
from mmt_cli.benchmark.layers import MILLISECONDS, Sample, Stopwatch, clock_for, hook_cost
from mmt_cli.benchmark.machine import PeakMemory, peak_memory, reset_peak_memory
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.report import Result, Summary, rates, steps_by_position
from mmt_cli.benchmark.results import LayerTimes, PhaseTimes, layer_rows
from mmt_cli.benchmark.work import Mark, Work, WorkCounter
from mmt_cli.benchmark.workload import Workload
from mmt_cli.captioning.recording import is_recorded
from mmt_cli.model.int8 import count_bytes


def measure(workload: Workload, options: BenchOptions, ceilings: Ceilings | None = None) -> Result:
    """Time the runs of one case, then count the work of one; figures are held against the ceilings."""
    clock = clock_for(workload.device)
    warm: Stopwatch[Any, float] = Stopwatch(clock)
    watch: Stopwatch[Any, float] = Stopwatch(clock)
    with torch.inference_mode(not workload.trains):
        for _ in range(options.warmup):
            workload.run(warm)
        hook_ms = hook_cost(warm) if options.layers else 0.0
        reset_peak_memory(workload.device)
        # Hooks see no layer of a step that is replayed: then the layers are timed by themselves.
        apart = options.layers and is_recorded(workload.model)
        inside: Stopwatch[Any, float] = Stopwatch(clock) if apart else watch
        if apart:
            for _ in range(options.repetitions):
                workload.run(watch)
        with inside.watching(workload.model) if options.layers else nullcontext():
            for _ in range(options.repetitions):
                workload.run(inside)
    peak = peak_memory(workload.device)
    counted = _count(workload) if options.layers else {}
    names = [name for name in (*workload.parts, *workload.across, workload.whole) if name in watch.samples]
    timed = {name: (watch if name == workload.whole else inside).samples[name] for name in names}
    rows = {n: layer_rows(n, workload.case, timed[n], counted.get(n, ()), hook_ms) for n in names}
    phases = tuple(
        PhaseTimes(name=n, case=workload.case, samples_ms=tuple(s.total for s in watch.samples[n])) for n in names
    )
    parts = tuple(rows.pop(workload.whole))
    return Result(
        phases=phases,
        parts=parts,
        layers=tuple(row for found in rows.values() for row in found) if options.layers else (),
        summary=_summary(
            workload, phases, parts, peak, counted[workload.whole][0].total if counted else None, ceilings
        ),
        ceilings=ceilings,
        layers_apart=apart,
    )


def _summary(
    workload: Workload,
    phases: tuple[PhaseTimes, ...],
    parts: tuple[LayerTimes, ...],
    peak: PeakMemory,
    work: Work | None,
    ceilings: Ceilings | None,
) -> Summary:
    by_name, whole = {phase.name: phase for phase in phases}, phases[-1]
    mfu, bandwidth = rates(parts, whole, work, ceilings) if ceilings else (None, None)
    return Summary(
        case=workload.case,
        images_per_s=workload.case.batch_size / whole.median_ms * MILLISECONDS,
        tokens_per_s=workload.tokens_per_s(by_name),
        ttft_ms=by_name[FIRST_TOKEN].median_ms if FIRST_TOKEN in by_name else None,
        cold_start_ms=None,
        peak=peak,
        work=work,
        mfu=mfu,
        bandwidth_utilisation=bandwidth,
        parameters=sum(parameter.numel() for parameter in workload.model.parameters()) + count_bytes(workload.model),
        steps=steps_by_position(by_name.get("decode")),
    )


def _count(workload: Workload) -> dict[str, list[Sample[Work]]]:
    counter = WorkCounter(workload.model)
    watch: Stopwatch[Mark, Work] = Stopwatch(counter)
    with torch.set_grad_enabled(workload.trains), counter, watch.watching(workload.model):
        workload.run(watch)
    return watch.samples
