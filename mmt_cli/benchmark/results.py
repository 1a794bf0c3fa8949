"""What a benchmark found: samples, their statistics, and the rows of the tables."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmt_cli.benchmark.layers import Sample
from mmt_cli.benchmark.work import NOTHING, Work

UNATTRIBUTED = "(unattributed)"


def percentile_95(samples: Sequence[float]) -> float:
    """Return the smallest sample that at least 95 % of all samples do not exceed."""
    return sorted(samples)[math.ceil(0.95 * len(samples)) - 1]


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Milliseconds of every run of one phase; of `decode`, of every step."""

    name: str
    batch_size: int
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
            "batch_size": self.batch_size,
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "min_ms": min(self.samples_ms),
            "samples_ms": list(self.samples_ms),
        }


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """One layer of a phase, over all runs of that phase; of `decode`, over all steps.

    Attributes:
        name: module, or what the phase does there; UNATTRIBUTED is the rest of the phase.
        phase: the phase it is a part of; the parts of `caption` or `train` are the other phases.
        batch_size: images at a time.
        calls: how often it is called in one run of the phase.
        median_ms: its part of the phase's median, all its calls together, so that these add up to that median.
        p95_ms: 95th percentile of what it takes in one run of the phase.
        share: its part of the time of the phase's typical runs, which are the middle half; they add up to 1.
        flops: floating-point operations in one run of the phase; None where they were not counted.
        nbytes: bytes of weights that it reads in one run of the phase; None likewise.
    """

    name: str
    phase: str
    batch_size: int
    calls: int
    median_ms: float
    p95_ms: float
    share: float
    flops: int | None
    nbytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record of a layer."""
        return {
            "name": self.name,
            "phase": self.phase,
            "batch_size": self.batch_size,
            "calls": self.calls,
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "share": self.share,
            "flops": self.flops,
            "bytes": self.nbytes,
        }


def layer_rows(
    phase: str, batch_size: int, times: Sequence[Sample[float]], work: Sequence[Sample[Work]]
) -> list[LayerTimes]:
    """Return the layers of a phase and what is left of it, or nothing where it has no layers.

    Args:
        phase: name of the phase.
        batch_size: images at a time.
        times: milliseconds, a sample for each run of the phase.
        work: the same runs in one caption or training step, counted; empty to do without.
    """
    if not times[0].layers:
        return []
    rows = []
    parts = [*((name, len(calls)) for name, calls in times[0].layers.items()), (UNATTRIBUTED, 1)]
    phase_ms = statistics.median(sample.total for sample in times)
    for name, calls in parts:
        done = [_work(sample, name) for sample in work]
        # The medians of parts do not add up to the median of the whole, the shares of time do.
        share = _share(times, name)
        rows.append(
            LayerTimes(
                name=name,
                phase=phase,
                batch_size=batch_size,
                calls=calls,
                median_ms=share * phase_ms,
                p95_ms=max(percentile_95([_ms(sample, name) for sample in times]), share * phase_ms),
                share=share,
                flops=statistics.median_low(w.flops for w in done) if done else None,
                nbytes=statistics.median_low(w.nbytes for w in done) if done else None,
            )
        )
    return rows


def _share(times: Sequence[Sample[float]], name: str) -> float:
    """Return a layer's part of the time of the middle half of all runs, which leaves out those that were disturbed."""
    quarter = (len(times) + 1) // 4
    typical = sorted(times, key=lambda sample: sample.total)[quarter : len(times) - quarter]
    whole = sum(sample.total for sample in typical)
    return sum(_ms(sample, name) for sample in typical) / whole if whole else 0.0


def _ms(sample: Sample[float], name: str) -> float:
    if name == UNATTRIBUTED:
        return sample.total - sum(map(sum, sample.layers.values()))
    return sum(sample.layers[name])


def _work(sample: Sample[Work], name: str) -> Work:
    if name == UNATTRIBUTED:
        return sample.total - sum((sum(calls, NOTHING) for calls in sample.layers.values()), NOTHING)
    return sum(sample.layers[name], NOTHING)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures people compare, at one batch size.

    Attributes:
        batch_size: images at a time.
        images_per_s: whole captions, from file to tokens, or images of whole training steps.
        tokens_per_s: new tokens in decode steps, all rows together, None where there was no step; in training the
            tokens that are learned, which have a target.
        ttft_ms: time to the first token, from the file on; None in training.
        peak_memory_bytes: on a GPU what was allocated at most, else the process's largest size up to then.
        flops: floating-point operations of the captions, or of the training step, of one batch; None where they were
            not counted.
        parameters: numbers that training changes.
    """

    batch_size: int
    images_per_s: float
    tokens_per_s: float | None
    ttft_ms: float | None
    peak_memory_bytes: int
    flops: int | None
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record; two figures need the machine's limits, which are not measured yet."""
        return {
            "batch_size": self.batch_size,
            "images_per_s": self.images_per_s,
            "tokens_per_s": self.tokens_per_s,
            "ttft_ms": self.ttft_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "mfu": None,
            "bandwidth_utilisation": None,
            "flops": self.flops,
            "parameters": self.parameters,
        }


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """All that was found at one batch size.

    Attributes:
        phases: the parts of a caption or training step in their order, then the whole of it.
        parts: the same phases as parts of that whole, and what is left of it.
        layers: what the phases consist of; may be empty.
        summary: the figures people compare.
    """

    phases: tuple[PhaseTimes, ...]
    parts: tuple[LayerTimes, ...]
    layers: tuple[LayerTimes, ...]
    summary: Summary


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole benchmark."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    batches: tuple[BatchResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record; `summary` is of the first batch size, `summaries` are of all."""
        summaries = [batch.summary.to_json() for batch in self.batches]
        return {
            "machine": self.machine,
            "settings": self.settings,
            "phases": [phase.to_json() for batch in self.batches for phase in batch.phases],
            "layers": [
                row.to_json() for batch in self.batches if batch.layers for row in (*batch.parts, *batch.layers)
            ],
            "summary": summaries[0],
            "summaries": summaries,
        }
