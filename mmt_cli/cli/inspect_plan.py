"""What `mmt inspect --plan` shows: work by phase, memory, and what fits where."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmt_cli.cli import tables
from mmt_cli.cli.views import Lines, Sheet, View

if TYPE_CHECKING:
    from mmt_cli.inspection.plan import Fit, Plan
    from mmt_cli.inspection.rehearsal import Phase

_PARTS = ("caption", "train", "train, recomputed")


def plan_view(model: str, plan: "Plan", fits: "Sequence[Fit]") -> View:
    """Return phases, memory, and how many images at a time usual memories hold."""
    load = plan.load
    size = "" if load.image_size is None else f" of {load.image_size} pixels"
    tiles = "" if load.tiles == 1 else f" in {load.tiles} tiles each"
    dtype = str(load.dtype).removeprefix("torch.")
    images = f"{load.batch} image{'s' if load.batch > 1 else ''}{size}{tiles}"
    beams = f"{load.beams} beam{'s' if load.beams > 1 else ''}"
    return View(
        title=f"{model}: {plan.parameters:,} parameters, {images}, {load.prompt} + {load.new} tokens, {beams}, {dtype}",
        parts=lambda: [_phases(plan), Lines(lines=_sums(plan)), _fits(fits), Lines(lines=_NOTES)],
        records=lambda: list(_records(plan)),
        record=lambda: {"model": model} | plan.to_json() | {"fits": [vars(fit) for fit in fits]},
    )


_NOTES = (
    "Bytes read are of weights, and of keys and values; the step is the last one, with the most to look back at.",
    "Memory is what tensors take at most beside the weights, in training beside AdamW's averages and images to come.",
    "On a CPU the C library's heap may hold on to more: 28% where that was measured.",
)


def _phases(plan: "Plan") -> Sheet:
    rows = [
        (
            f"{part}: {phase.name}",
            tables.quantity(phase.flops, "FLOP"),
            tables.quantity(phase.nbytes, "B"),
            tables.quantity(phase.peak, "B"),
        )
        for part, phases in _parts(plan)
        for phase in phases
    ]
    return Sheet(columns=("phase", "work", "bytes read", "memory"), rows=rows)


def _parts(plan: "Plan") -> "Iterator[tuple[str, Sequence[Phase]]]":
    return zip(_PARTS, (plan.captioning, plan.training, plan.recomputed), strict=True)


def _sums(plan: "Plan") -> list[str]:
    step = plan.captioning[-1]
    rows, read = plan.load.batch * plan.load.beams, tables.quantity(step.nbytes, "B")
    return [
        f"weights: {tables.quantity(plan.weights, 'B')}",
        f"keys and values at the end of the text: {tables.quantity(plan.cache, 'B')}",
        f"bytes read for each step: {read}, {tables.quantity(step.nbytes / rows, 'B')} a token",
        f"memory for captioning: {tables.quantity(plan.caption_peak, 'B')}",
        f"memory for training: {tables.quantity(plan.train_peak, 'B')}",
        f"the same with activations computed again: {tables.quantity(plan.recomputed_peak, 'B')}",
    ]


def _fits(fits: "Sequence[Fit]") -> Sheet:
    rows = [(f"{fit.gigabytes} GB", *(f"{n:,}" for n in (fit.caption, fit.train, fit.recomputed))) for fit in fits]
    return Sheet(columns=("images at a time in", *_PARTS), rows=rows)


def _records(plan: "Plan") -> Iterator[dict[str, Any]]:
    for part, phases in _parts(plan):
        for phase in phases:
            yield {"part": part} | vars(phase)
