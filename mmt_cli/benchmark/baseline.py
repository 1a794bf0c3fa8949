"""The same benchmark some time ago: what has become slower since."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.benchmark.caption import FIRST_TOKEN
from mmt_cli.benchmark.comparison import Comparison, unpaired_ratio
from mmt_cli.benchmark.options import Case
from mmt_cli.benchmark.report import Report, Result
from mmt_cli.errors import SlowerError, UsageError, shown

_MACHINE = ("processor", "gpu", "device", "dtype", "threads")
_MAX_BYTES = 256 << 20
Samples = dict[tuple[Case, str], tuple[float, ...]]


class Baseline:
    """An older report, read from its JSON.

    Attributes:
        path: of its file.
        samples: milliseconds of each phase of each case.
        machine: what it was measured on.
        layers: whether it was measured with hooks in the layers.
    """

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            UsageError: the file cannot be read, or is no report of `mmt bench -f json`.
        """
        self.path = path
        data = _read(path)
        try:
            self.samples: Samples = dict(map(_phase, data["phases"]))
            self.machine: dict[str, Any] = {key: data["machine"].get(key) for key in _MACHINE}
            self.layers = bool(data["settings"]["layers"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no report of mmt bench ({path}, {type(error).__name__}: {shown(str(error))})"
            raise UsageError(f"{what}; write one with mmt bench -f json") from error

    def compare(self, report: Report) -> tuple[Comparison, ...]:
        """Return what both measured: wholes, first tokens and the decode steps of a caption.

        Raises:
            UsageError: they have nothing in common, or only one of them has hooks in the layers.
        """
        if self.layers != report.settings["layers"]:
            both = f"{self.path} {_hooks(self.layers)}, this run {_hooks(not self.layers)}"
            raise UsageError(f"the baseline was measured in another way ({both}); measure both alike")
        found = tuple(comparison for result in report.results for comparison in self._of(result))
        if not found:
            cases = ", ".join(sorted({_named(case) for case, _ in self.samples})[:3])
            ours = ", ".join(_named(result.summary.case) for result in report.results[:3])
            raise UsageError(f"nothing to compare ({self.path} has {cases}, this run {ours}); measure the same")
        return found

    def _of(self, result: Result) -> Iterator[Comparison]:
        by_name = {phase.name: phase for phase in result.phases}
        whole = result.phases[-1]
        old_whole = self.samples.get((whole.case, whole.name), ())
        for name in (whole.name, FIRST_TOKEN, "decode"):
            old = self.samples.get((whole.case, name), ())
            if name not in by_name or not old or not old_whole:
                continue
            now, then = per_run(by_name[name].samples_ms, len(whole.samples_ms)), per_run(old, len(old_whole))
            yield Comparison(
                case=whole.case,
                name=name,
                other=str(self.path),
                ours_ms=now,
                theirs_ms=then,
                ratio=unpaired_ratio(now, then),
            )

    def differences(self, machine: dict[str, Any]) -> list[str]:
        """Return what was different on the machine then, each with both values."""
        changed = [key for key in _MACHINE if self.machine[key] != machine.get(key)]
        return [f"{key} {shown(self.machine[key])} then, {shown(machine.get(key))} now" for key in changed]


def with_baseline(report: Report, baseline: Baseline, note: Callable[[str], None]) -> Report:
    """Return the report with what it is compared with; `note` takes a line where the machine was another.

    Raises:
        UsageError: nothing can be compared.
    """
    if found := baseline.differences(report.machine):
        note(f"the baseline was measured elsewhere: {', '.join(found)}")
    return dataclasses.replace(report, baseline=baseline.compare(report))


def check_speed(comparisons: Sequence[Comparison], limit: float) -> None:
    """Look for what has become slower by more than `limit`, a part of the old time.

    Raises:
        SlowerError: something has, and its interval lies beyond the limit as a whole.
    """
    slower = [found for found in comparisons if 1 / found.ratio.high > 1 + limit]
    if slower:
        worst = max(slower, key=lambda found: 1 / found.ratio.value)
        times = f"{1 / worst.ratio.value:.2f} x the time of {worst.other}"
        surely = f"at least {1 / worst.ratio.high:.2f} x, the limit is {1 + limit:.2f} x"
        raise SlowerError(f"slower ({worst.name} of {_named(worst.case)}: {times}, {surely}); find out why")


def per_run(samples: Sequence[float], runs: int) -> tuple[float, ...]:
    """Return the sums of the samples of each run: decode steps of one caption are no independent measurements."""
    count = len(samples) // runs
    return tuple(sum(samples[run * count : (run + 1) * count]) for run in range(runs))


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"the baseline is too large ({path}, at most {_MAX_BYTES} bytes); name a report's file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the baseline cannot be read ({path}: {error.strerror}); name a report's file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the baseline is no JSON ({path}, {shown(str(error))}); write it with -f json") from error


def _phase(record: Any) -> tuple[tuple[Case, str], tuple[float, ...]]:
    samples = tuple(float(value) for value in record["samples_ms"])
    if not samples or not all(math.isfinite(value) and value > 0 for value in samples):
        raise ValueError(f"samples of {record['name']} that are no times")
    lengths = {key: int(record[key]) for key in ("batch_size", "prompt_tokens", "gen_tokens")}
    return (Case(model=str(record["model"]), **lengths), str(record["name"])), samples


def _named(case: Case) -> str:
    return f"{case.model} -b {case.batch_size} --prompt-tokens {case.prompt_tokens} --gen-tokens {case.gen_tokens}"


def _hooks(layers: bool) -> str:
    return "with --layers" if layers else "with --no-layers"
