"""A whole benchmark: the figures people compare, and the records for programs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmt_cli.benchmark.ceilings import Ceilings
from mmt_cli.benchmark.comparison import Comparison
from mmt_cli.benchmark.layers import MILLISECONDS
from mmt_cli.benchmark.machine import PeakMemory
from mmt_cli.benchmark.options import Case
from mmt_cli.benchmark.results import LayerTimes, PhaseTimes, part_of
from mmt_cli.benchmark.work import Work

_POSITIONS = (16, 64, 256, 1024)  # new tokens up to which the steps of a caption are looked at together


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Decode steps from one length of the text to another.

    Attributes:
        first: new tokens before the first of these steps.
        last: new tokens behind the last.
        median_ms: of a step.
    """

    first: int
    last: int
    median_ms: float


def steps_by_position(decode: PhaseTimes | None) -> tuple[StepTimes, ...]:
    """Return how long a step takes early and late in a caption: more means that it costs what was written already."""
    steps = decode.case.gen_tokens - 1 if decode else 0
    if decode is None or steps <= _POSITIONS[0]:
        return ()
    edges = [0, *(edge for edge in _POSITIONS if edge < steps), steps]
    found = []
    for first, last in pairwise(edges):
        times = [ms for place, ms in enumerate(decode.samples_ms) if first <= place % steps < last]
        found.append(StepTimes(first=first + 1, last=last + 1, median_ms=statistics.median(times)))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures people compare, of one case.

    Attributes:
        case: what was measured.
        images_per_s: whole captions, from file to text, or images of whole training steps.
        tokens_per_s: new tokens in decode steps, all rows together, None where there was no step; in training the
            tokens that are learned, which have a target.
        ttft_ms: time to the first token, from the file on; None in training.
        cold_start_ms: from the start of a process to its first caption; None where it was not measured.
        peak: the most memory that was in use.
        work: of the captions, or of the training step, of one batch; None where it was not counted.
        mfu: FLOPs a second of the whole as a part of the machine's matrix rate.
        bandwidth_utilisation: bytes a second of a decode step as a part of the machine's memory bandwidth.
        parameters: numbers that training changes, or changed before they were held in 8 bits.
        steps: how long a decode step takes early and late in a caption.
    """

    case: Case
    images_per_s: float
    tokens_per_s: float | None
    ttft_ms: float | None
    cold_start_ms: float | None
    peak: PeakMemory
    work: Work | None
    mfu: float | None
    bandwidth_utilisation: float | None
    parameters: int
    steps: tuple[StepTimes, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record."""
        return {
            **self.case.to_json(),
            "images_per_s": self.images_per_s,
            "tokens_per_s": self.tokens_per_s,
            "ttft_ms": self.ttft_ms,
            "cold_start_ms": self.cold_start_ms,
            "peak_memory_bytes": self.peak.main,
            "peak_process_bytes": self.peak.process,
            "peak_allocator_bytes": self.peak.allocator,
            "peak_tensor_bytes": self.work.peak if self.work else None,
            "mfu": self.mfu,
            "bandwidth_utilisation": self.bandwidth_utilisation,
            "flops": self.work.flops if self.work else None,
            "parameters": self.parameters,
            "steps": [vars(step) for step in self.steps],
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that was found of one case.

    Attributes:
        phases: what was timed: the parts of a caption or training step in their order, measurements across them, the
            whole.
        parts: the phases as parts of the whole, and what is left of it.
        layers: what the phases consist of; may be empty.
        summary: the figures people compare.
        ceilings: what the machine can do at most; None where it was not measured.
        comparisons: with another implementation, in turn.
        layers_apart: whether the layers were timed in runs of their own, step by step, and the phases by replaying.
    """

    phases: tuple[PhaseTimes, ...]
    parts: tuple[LayerTimes, ...]
    layers: tuple[LayerTimes, ...]
    summary: Summary
    ceilings: Ceilings | None = None
    comparisons: tuple[Comparison, ...] = ()
    layers_apart: bool = False

    @property
    def rows(self) -> tuple[LayerTimes, ...]:
        """The parts, and the layers where there are any."""
        return (*self.parts, *self.layers)


def rates(
    parts: Sequence[LayerTimes], whole: PhaseTimes, work: Work | None, most: Ceilings
) -> tuple[float | None, float | None]:
    """Return MFU of the whole, and the part of the bandwidth that decoding uses."""
    per_s = work.flops / whole.median_ms * MILLISECONDS if work else None
    decode = next((row for row in parts if row.name == "decode"), None)
    bytes_per_s = decode.rate(decode.work.nbytes) if decode and decode.work else None
    return part_of(per_s, most.flops_per_s), part_of(bytes_per_s, most.bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole benchmark.

    Attributes:
        machine: what figures depend on.
        settings: what was asked for.
        results: one for each case.
        baseline: comparisons with an older report; empty without one.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: tuple[Result, ...]
    baseline: tuple[Comparison, ...] = ()

    @property
    def ceilings(self) -> Ceilings | None:
        """What the machine can do at most; None where it was not measured."""
        return self.results[0].ceilings

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record; `summary` is of the first case, `summaries` are of all."""
        summaries = [result.summary.to_json() | {"layers_apart": result.layers_apart} for result in self.results]
        return {
            "machine": self.machine | (self.ceilings.to_json() if self.ceilings else {}),
            "settings": self.settings,
            "phases": [phase.to_json() for result in self.results for phase in result.phases],
            "layers": [row.to_json(self.ceilings) for found in self.results if found.layers for row in found.rows],
            "summary": summaries[0],
            "summaries": summaries,
            "against": [found.to_json() for result in self.results for found in result.comparisons],
            "baseline": [found.to_json() for found in self.baseline],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the records of parts, and of layers where there are any."""
        return [row.to_json(self.ceilings) for result in self.results for row in result.rows]

    def lines(self) -> list[dict[str, Any]]:
        """Return all of it as one object a line, each with its `kind`."""
        whole = self.to_json()
        kinds = {"phases": "phase", "layers": "layer", "summaries": "summary", "against": "against"}
        kinds["baseline"] = "baseline"
        lines = [{"kind": "machine", **whole["machine"]}, {"kind": "settings", **whole["settings"]}]
        return lines + [{"kind": kind, **record} for key, kind in kinds.items() for record in whole[key]]
