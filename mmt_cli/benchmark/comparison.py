"""Two implementations, or two versions of one: how much faster one is, and how sure that is."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmt_cli.benchmark.options import Case

_RESAMPLES = 2000
_TAIL = 0.025  # on either side of the interval
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The other's time over ours, above 1 where we are faster, and the interval that holds it in 95 of 100 cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of a case, ours beside another's.

    Attributes:
        case: what was measured.
        name: the phase, or what else was timed.
        other: who the other is.
        ours_ms: our times, one a round or run.
        theirs_ms: the other's.
        ratio: of the two.
        tokens: how many tokens both wrote; None where they were not looked at.
        equal_tokens: how many of them are the same at the same place.
    """

    case: Case
    name: str
    other: str
    ours_ms: tuple[float, ...]
    theirs_ms: tuple[float, ...]
    ratio: Ratio
    tokens: int | None = None
    equal_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        return {
            "name": self.name,
            **self.case.to_json(),
            "other": self.other,
            "ours_ms": statistics.median(self.ours_ms),
            "theirs_ms": statistics.median(self.theirs_ms),
            "ratio": self.ratio.value,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "tokens": self.tokens,
            "equal_tokens": self.equal_tokens,
            "ours_samples_ms": list(self.ours_ms),
            "theirs_samples_ms": list(self.theirs_ms),
        }


def paired_ratio(ours_ms: Sequence[float], theirs_ms: Sequence[float]) -> Ratio:
    """Return the median of the rounds' ratios, with its bootstrap interval over rounds.

    What slows both of a round down, such as another process, leaves its ratio as it is.
    """
    ratios = [theirs / ours for ours, theirs in zip(ours_ms, theirs_ms, strict=True)]
    return _interval(statistics.median(ratios), lambda draw: statistics.median(draw.choices(ratios, k=len(ratios))))


def unpaired_ratio(ours_ms: Sequence[float], theirs_ms: Sequence[float]) -> Ratio:
    """Return the ratio of the medians of runs at different times, with its bootstrap interval."""

    def median(samples: Sequence[float], draw: random.Random) -> float:
        return statistics.median(draw.choices(samples, k=len(samples)))

    value = statistics.median(theirs_ms) / statistics.median(ours_ms)
    return _interval(value, lambda draw: median(theirs_ms, draw) / median(ours_ms, draw))


def _interval(value: float, resampled: Callable[[random.Random], float]) -> Ratio:
    draw = random.Random(_SEED)  # noqa: S311
    found = sorted(resampled(draw) for _ in range(_RESAMPLES))
    edge = int(_TAIL * _RESAMPLES)
    return Ratio(value=value, low=found[edge], high=found[-1 - edge])
