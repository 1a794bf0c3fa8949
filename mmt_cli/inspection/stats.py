"""The numbers of a checkpoint: how large they are and how they are spread, by module or by tensor."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmt_cli.inspection.contents import Contents
from mmt_cli.inspection.summary import Entry, Modality, summary_of
from mmt_cli.inspection.values import pieces, wide

BINS = 16
SPREAD = 3.0  # a histogram reaches this many standard deviations to either side of the mean


@dataclass(kw_only=True)
class Moments:
    """Running sums over numbers; the finite ones alone count in all but `nan` and `infinite`."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of the distances from the mean
    minimum: float = math.inf
    maximum: float = -math.inf
    zeros: int = 0
    nan: int = 0
    infinite: int = 0

    def add(self, x_N: Tensor) -> None:
        """Take in one piece (Chan, Golub and LeVeque 1979: sums of parts without loss)."""
        finite_N = torch.isfinite(x_N)
        if not bool(finite_N.all()):
            self.nan += int(torch.isnan(x_N).sum())
            self.infinite += int(torch.isinf(x_N).sum())
            x_N = x_N[finite_N]
        if not len(x_N):
            return
        x_N = x_N.double()
        count, mean = len(x_N), float(x_N.mean())
        away, total = mean - self.mean, self.count + len(x_N)
        self.squares += float((x_N - mean).square().sum()) + away * away * self.count * count / total
        self.mean += away * count / total
        self.count = total
        self.zeros += int((x_N == 0).sum())
        self.minimum = min(self.minimum, float(x_N.min()))
        self.maximum = max(self.maximum, float(x_N.max()))

    @property
    def std(self) -> float:
        """Standard deviation of all of them, not an estimate from a sample."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """The numbers of a module, or of one tensor.

    Attributes:
        name: of it.
        modality: what it works on; None where that is unknown.
        moments: over all of its numbers.
        histogram: how many of them lie in each of 16 bins as wide as each other, from 3 standard deviations below the
            mean to 3 above it; what lies beyond is in the outermost.
    """

    name: str
    modality: Modality | None
    moments: Moments
    histogram: tuple[int, ...]

    @property
    def zeros(self) -> float:
        """Share of the finite numbers that are zero."""
        return self.moments.zeros / self.moments.count if self.moments.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the record; figures of nothing are null."""
        found = self.moments
        some = found.count > 0
        return {
            "name": self.name,
            "modality": self.modality,
            "count": found.count + found.nan + found.infinite,
            "mean": found.mean if some else None,
            "std": found.std if some else None,
            "min": found.minimum if some else None,
            "max": found.maximum if some else None,
            "zeros": self.zeros,
            "nan": found.nan,
            "inf": found.infinite,
            "histogram": list(self.histogram),
        }


def stats_of(contents: Contents, *, depth: int, tensors: bool = False) -> list[Stats]:
    """Read all weights, and return the statistics of modules, or of tensors.

    Args:
        contents: with weights.
        depth: names deep of the modules.
        tensors: one by one, by the names that they have in the file.

    Raises:
        ModelError: a file cannot be read any more.
        UsageError: it is a preset.
    """
    contents.need_weights("--stats")
    summary = summary_of(contents)
    if tensors:
        groups: Iterable[tuple[str, list[Entry]]] = ((entry.info.name, [entry]) for entry in summary.entries)
    else:
        groups = summary.groups(depth)
    return [_stats(contents, name, entries) for name, entries in groups]


def _stats(contents: Contents, name: str, entries: Sequence[Entry]) -> Stats:
    moments = Moments()
    for entry in entries:
        for piece_N in pieces(contents, entry.info):
            moments.add(wide(piece_N, entry.info.dtype))
    counts = torch.zeros(BINS, dtype=torch.int64)
    if moments.count:
        for entry in entries:  # read again: where the bins lie is known only now
            for piece_N in pieces(contents, entry.info):
                counts += _binned(wide(piece_N, entry.info.dtype), moments)
    modalities = {entry.modality for entry in entries}
    modality = modalities.pop() if len(modalities) == 1 else None
    return Stats(name=name, modality=modality, moments=moments, histogram=tuple(counts.tolist()))


def _binned(x_N: Tensor, moments: Moments) -> Tensor:
    """Return how many numbers of a piece lie in each bin."""
    x_N = x_N[torch.isfinite(x_N)].double()
    if moments.std == 0:  # all are alike: they stand in the middle
        return torch.bincount(torch.full((len(x_N),), BINS // 2), minlength=BINS)
    places_N = ((x_N - moments.mean) / moments.std + SPREAD) * (BINS / (2 * SPREAD))
    return torch.bincount(places_N.floor().clamp_(0, BINS - 1).long(), minlength=BINS)
