"""What a benchmark found in each phase: samples, their statistics, and the layers that they add up from."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmt_cli.benchmark.ceilings import Ceilings
from mmt_cli.benchmark.layers import MILLISECONDS, Sample
from mmt_cli.benchmark.options import Case
from mmt_cli.benchmark.work import NOTHING, Work

UNATTRIBUTED, HOOKS = "(unattributed)", "(hooks)"


def percentile_95(samples: Sequence[float]) -> float:
    """Return the smallest sample that at least 95 % of all samples do not exceed."""
    return sorted(samples)[math.ceil(0.95 * len(samples)) - 1]


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Milliseconds of every run of one phase; of `decode`, of every step."""

    name: str
    case: Case
    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples_ms)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile of the samples."""
        return percentile_95(self.samples_ms)

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record of a phase."""
        return {
            "name": self.name,
            **self.case.to_json(),
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "min_ms": min(self.samples_ms),
            "samples_ms": list(self.samples_ms),
        }


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """One layer of a phase, over all runs of that phase; of `decode`, over all steps.

    Attributes:
        name: module, or what the phase does there; HOOKS is what measuring took, UNATTRIBUTED the rest of the phase.
        phase: the phase it is a part of; the parts of `caption` or `train` are the other phases.
        case: what was measured.
        calls: how often it is called in one run of the phase.
        median_ms: its part of the phase's median, all its calls together, so that these add up to that median.
        p95_ms: 95th percentile of what it takes in one run of the phase.
        share: its part of the time of the phase's typical runs, which are the middle half; they add up to 1.
        work: what it does in one run of the phase; None where that was not counted.
    """

    name: str
    phase: str
    case: Case
    calls: int
    median_ms: float
    p95_ms: float
    share: float
    work: Work | None

    def to_json(self, ceilings: Ceilings | None) -> dict[str, Any]:
        """Return the contract's record of a layer, and how near it comes to what the machine can do."""
        work = self.work
        flops_per_s = self.rate(work.flops) if work else None
        bytes_per_s = self.rate(work.nbytes) if work else None
        return {
            "name": self.name,
            "phase": self.phase,
            **self.case.to_json(),
            "calls": self.calls,
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "share": self.share,
            "flops": work.flops if work else None,
            "flops_per_s": flops_per_s,
            "matrix_share": part_of(flops_per_s, ceilings.flops_per_s if ceilings else None),
            "bytes": work.nbytes if work else None,
            "bytes_per_s": bytes_per_s,
            "bandwidth_share": part_of(bytes_per_s, ceilings.bytes_per_s if ceilings else None),
            "peak_memory_bytes": work.peak if work else None,
        }

    def rate(self, amount: float | None) -> float | None:
        """Return an amount of work as one a second; None where it is not known, or nothing."""
        return amount / self.median_ms * MILLISECONDS if amount and self.median_ms > 0 else None


def part_of(rate: float | None, ceiling: float | None) -> float | None:
    """Return a rate as a part of what the machine can do; None where either is not known."""
    return rate / ceiling if rate and ceiling else None


def layer_rows(
    phase: str, case: Case, times: Sequence[Sample[float]], work: Sequence[Sample[Work]], hook_ms: float = 0.0
) -> list[LayerTimes]:
    """Return the layers of a phase and what is left of it, or nothing where it has no layers.

    Args:
        phase: name of the phase.
        case: what was measured.
        times: milliseconds, a sample for each run of the phase.
        work: the same runs in one caption or training step, counted; empty to do without.
        hook_ms: what the hooks add to a call of a layer.
    """
    if not times[0].layers:
        return []
    phase_ms = statistics.median(sample.total for sample in times)
    parts = [(name, len(calls)) for name, calls in times[0].layers.items()]
    parts += [(HOOKS, times[0].hooked)] if times[0].hooked else []
    rows = []
    for name, calls in [*parts, (UNATTRIBUTED, 1)]:
        spent = [_ms(sample, name, hook_ms) for sample in times]
        # The medians of parts do not add up to the median of the whole, the shares of time do.
        share = _share(times, spent)
        rows.append(
            LayerTimes(
                name=name,
                phase=phase,
                case=case,
                calls=calls,
                median_ms=share * phase_ms,
                p95_ms=max(percentile_95(spent), share * phase_ms),
                share=share,
                work=_typical_work([_work(sample, name) for sample in work]),
            )
        )
    return rows


def _share(times: Sequence[Sample[float]], spent: Sequence[float]) -> float:
    """Return a layer's part of the time of the middle half of all runs, which leaves out those that were disturbed."""
    quarter = (len(times) + 1) // 4
    runs = sorted(zip(times, spent, strict=True), key=lambda run: run[0].total)[quarter : len(times) - quarter]
    whole = sum(sample.total for sample, _ in runs)
    return sum(part for _, part in runs) / whole if whole else 0.0


def _ms(sample: Sample[float], name: str, hook_ms: float) -> float:
    if name not in (HOOKS, UNATTRIBUTED):
        return sum(sample.layers.get(name, []))
    rest = sample.total - sum(map(sum, sample.layers.values()))
    hooks = min(max(rest, 0.0), sample.hooked * hook_ms)
    return hooks if name == HOOKS else rest - hooks


def _work(sample: Sample[Work], name: str) -> Work:
    if name == HOOKS:
        return NOTHING
    if name == UNATTRIBUTED:
        return sample.total - sum((sum(calls, NOTHING) for calls in sample.layers.values()), NOTHING)
    return sum(sample.layers[name], NOTHING)


def _typical_work(done: Sequence[Work]) -> Work | None:
    """Return the median over the runs; of the memory the most."""
    if not done:
        return None
    return Work(
        flops=statistics.median_low(work.flops for work in done),
        nbytes=statistics.median_low(work.nbytes for work in done),
        peak=max(work.peak for work in done),
    )
