import pytest

from mmt_cli.benchmark.layers import Sample
from mmt_cli.benchmark.results import UNATTRIBUTED, PhaseTimes, layer_rows, percentile_95
from mmt_cli.benchmark.work import Work


def run(total, **layers):
    return Sample(total=total, layers=layers)


def work(flops, nbytes=0):
    return Work(flops=flops, nbytes=nbytes)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([7.0], 7.0), ([3.0, 1.0, 2.0], 3.0), (list(range(1, 21)), 19), (list(range(1, 101)), 95), ([2.0] * 4, 2.0)],
)
def test_percentile_is_a_sample_that_19_of_20_do_not_exceed(samples, expected):
    assert percentile_95(samples) == expected


def test_phase_has_median_and_all_samples():
    record = PhaseTimes(name="vision", batch_size=2, samples_ms=(4.0, 1.0, 3.0, 2.0)).to_json()
    assert record == {
        "name": "vision",
        "batch_size": 2,
        "median_ms": 2.5,
        "p95_ms": 4.0,
        "min_ms": 1.0,
        "samples_ms": [4.0, 1.0, 3.0, 2.0],
    }


def test_rows_of_one_run_are_its_times_and_the_rest():
    rows = layer_rows(
        "vision", 4, [run(10.0, a=[1.0, 2.0], b=[5.0])], [run(work(9, 90), a=[work(2, 20)] * 2, b=[work(4, 40)])]
    )
    assert [(r.name, r.calls, r.median_ms, r.p95_ms, r.flops, r.nbytes) for r in rows] == [
        ("a", 2, 3.0, 3.0, 4, 40),
        ("b", 1, 5.0, 5.0, 4, 40),
        (UNATTRIBUTED, 1, 2.0, 2.0, 1, 10),
    ]
    assert [row.share for row in rows] == [0.3, 0.5, 0.2]
    assert {(row.phase, row.batch_size) for row in rows} == {("vision", 4)}


def test_rows_add_up_to_the_median_of_the_phase():
    times = [run(total, a=[total * 0.3], b=[total - 7.0]) for total in (10.0, 12.0, 30.0, 11.0, 13.0, 10.5)]
    rows = layer_rows("decode", 1, times, [])
    assert sum(row.median_ms for row in rows) == pytest.approx(11.5)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert all(row.p95_ms >= row.median_ms for row in rows)


def test_percentile_is_never_below_the_median():
    times = [run(total, a=[1.0]) for total in (10.0, 10.0, 20.0, 20.0, 20.0)]
    steady = layer_rows("decode", 1, times, [])[0]
    assert steady.p95_ms == steady.median_ms == pytest.approx(1.2)


def test_disturbed_runs_do_not_change_shares():
    quiet = [run(10.0, a=[4.0], b=[6.0])] * 6
    disturbed = [run(90.0, a=[84.0], b=[6.0]), run(50.0, a=[4.0], b=[46.0])]
    a, b, rest = layer_rows("decode", 1, [*quiet, *disturbed], [])
    assert (a.share, b.share, rest.share) == pytest.approx((0.4, 0.6, 0.0))
    assert (a.median_ms, a.p95_ms) == (4.0, 84.0)


def test_work_is_the_median_over_the_runs_of_a_caption():
    times = [run(1.0, a=[1.0])] * 3
    counted = [run(work(n), a=[work(n)]) for n in (10, 20, 60)]
    assert [row.flops for row in layer_rows("decode", 1, times, counted)] == [20, 0]
    assert [row.flops for row in layer_rows("decode", 1, times, [])] == [None, None]


def test_phase_without_layers_has_no_rows():
    assert layer_rows("connector", 1, [run(0.01)], []) == []


def test_phase_that_took_no_time_has_no_shares():
    assert [row.share for row in layer_rows("connector", 1, [run(0.0, a=[0.0])], [])] == [0.0, 0.0]
