import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.benchmark.baseline import Baseline, check_speed, per_run, with_baseline
from mmt_cli.benchmark.comparison import paired_ratio, unpaired_ratio
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.benchmark.run import run_benchmark
from mmt_cli.errors import SlowerError, UsageError

times = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=8)


def test_what_slows_a_round_down_leaves_its_ratio():
    ratio = paired_ratio([1.0, 10.0, 2.0, 5.0], [2.0, 20.0, 4.0, 10.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert unpaired_ratio([1.0, 10.0, 2.0, 5.0], [2.0, 20.0, 4.0, 10.0]).low < 1


@given(times, st.data())
def test_intervals_hold_the_ratio_and_lie_within_all_there_are(ours, data):
    theirs = data.draw(st.lists(st.floats(0.1, 1e4), min_size=len(ours), max_size=len(ours)))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    found = paired_ratio(ours, theirs)
    assert min(ratios) <= found.low <= found.value <= found.high <= max(ratios)
    other = unpaired_ratio(ours, theirs)
    assert min(theirs) / max(ours) <= other.low <= other.high <= max(theirs) / min(ours)


def test_more_rounds_make_the_interval_narrower():
    few, many = ([1.0 + 0.1 * (n % 5) for n in range(count)] for count in (5, 200))
    spans = [paired_ratio([1.0] * len(theirs), theirs) for theirs in (few, many)]
    assert spans[1].high - spans[1].low < spans[0].high - spans[0].low


def test_steps_of_one_caption_are_one_measurement():
    assert per_run([1.0, 2.0, 3.0, 4.0], 2) == (3.0, 7.0)
    assert per_run([1.0, 2.0], 2) == (1.0, 2.0)


QUICK = {"models": ("preset:tiny",), "repetitions": 3, "warmup": 0, "gen_tokens": (3,), "device": "cpu"}


@pytest.fixture(scope="module")
def report():
    return run_benchmark(BenchOptions(**QUICK, layers=False))


def slower(report, factor):
    """Return the report with the same samples, or all of them longer."""

    def longer(phase):
        count = len(phase.samples_ms)
        return PhaseTimes(name=phase.name, case=phase.case, samples_ms=tuple(10.0 * factor for _ in range(count)))

    results = [dataclasses.replace(result, phases=tuple(map(longer, result.phases))) for result in report.results]
    return dataclasses.replace(report, results=tuple(results))


@pytest.fixture
def save(tmp_path):
    def save(report):
        path = tmp_path / "old.json"
        path.write_text(report if isinstance(report, str) else json.dumps(report.to_json()), encoding="utf-8")
        return path

    return save


@pytest.mark.parametrize(("factor", "limit", "fails"), [(1.2, 0.05, True), (1.2, 0.25, False), (0.5, 0.0, False)])
def test_only_what_is_slower_by_more_than_the_limit_fails(report, save, factor, limit, fails):
    found = with_baseline(slower(report, factor), Baseline(save(slower(report, 1))), lambda _: None).baseline
    assert [each.name for each in found] == ["caption", "first token", "decode"]
    assert all(each.ratio.value == pytest.approx(1 / factor) for each in found)
    if fails:
        with pytest.raises(
            SlowerError, match=r"1\.20 x the time of .*old\.json, at least 1\.20 x, the limit is 1\.05 x"
        ):
            check_speed(found, limit)
    else:
        check_speed(found, limit)


def test_slower_within_the_interval_is_no_failure(report, save):
    noisy = [
        dataclasses.replace(phase, samples_ms=(9.0, 12.0, 15.0) * (len(phase.samples_ms) // 3))
        for phase in report.results[0].phases
    ]
    now = dataclasses.replace(report, results=(dataclasses.replace(report.results[0], phases=tuple(noisy)),))
    found = with_baseline(now, Baseline(save(slower(report, 1))), lambda _: None).baseline
    assert found[0].ratio.value == pytest.approx(10 / 12)
    check_speed(found, 0.05)


def test_another_machine_is_told_and_measured_all_the_same(report, save):
    notes = []
    then = dataclasses.replace(report, machine=report.machine | {"threads": 99})
    assert with_baseline(report, Baseline(save(then)), notes.append).baseline
    assert len(notes) == 1 and "threads 99 then" in notes[0]


def test_what_cannot_be_compared_is_refused(report, save):
    other = dataclasses.replace(report, settings=report.settings | {"layers": True})
    with pytest.raises(UsageError, match="with --layers, this run with --no-layers"):
        with_baseline(report, Baseline(save(other)), lambda _: None)
    text = json.dumps(report.to_json()).replace("preset:tiny", "preset:seed")
    with pytest.raises(UsageError, match=r"nothing to compare .*preset:seed -b 1.*preset:tiny -b 1"):
        with_baseline(report, Baseline(save(text)), lambda _: None)


PHASE = {"name": "caption", "model": "m", "batch_size": 1, "prompt_tokens": 1, "gen_tokens": 1, "samples_ms": [1.0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{" * 100_000,
        '{"phases": 3, "machine": {}, "settings": {"layers": true}}',
        *(
            json.dumps({"phases": [PHASE | change], "machine": {}, "settings": {"layers": True}})
            for change in ({"samples_ms": []}, {"samples_ms": ["x"]}, {"samples_ms": [-1]}, {"batch_size": None})
        ),
        json.dumps({"phases": [PHASE | {"samples_ms": [float("nan")]}], "machine": {}, "settings": {"layers": True}}),
        json.dumps({"phases": [PHASE], "machine": [], "settings": {"layers": True}}),
        json.dumps({"phases": [PHASE], "machine": {}, "settings": {}}),
    ],
)
def test_files_that_are_no_reports_are_named(save, text):
    with pytest.raises(UsageError, match=r"old\.json"):
        Baseline(save(text))


def test_missing_and_huge_files_are_named(tmp_path, monkeypatch, save):
    with pytest.raises(UsageError, match="gone"):
        Baseline(tmp_path / "gone.json")
    monkeypatch.setattr("mmt_cli.benchmark.baseline._MAX_BYTES", 3)
    with pytest.raises(UsageError, match="too large"):
        Baseline(save("{     }"))
    with pytest.raises(UsageError):
        Baseline(Path("/"))
