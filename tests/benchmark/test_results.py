import pytest

from mmt_cli.benchmark.ceilings import Ceilings
from mmt_cli.benchmark.layers import Sample
from mmt_cli.benchmark.options import Case
from mmt_cli.benchmark.results import HOOKS, UNATTRIBUTED, PhaseTimes, layer_rows, percentile_95
from mmt_cli.benchmark.work import Work

CASE = Case(model="preset:tiny", batch_size=4, prompt_tokens=2, gen_tokens=20)


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
    record = PhaseTimes(name="vision", case=CASE, samples_ms=(4.0, 1.0, 3.0, 2.0)).to_json()
    assert record == {
        "name": "vision",
        "model": "preset:tiny",
        "batch_size": 4,
        "prompt_tokens": 2,
        "gen_tokens": 20,
        "median_ms": 2.5,
        "p95_ms": 4.0,
        "min_ms": 1.0,
        "samples_ms": [4.0, 1.0, 3.0, 2.0],
    }


def test_rows_of_one_run_are_its_times_and_the_rest():
    rows = layer_rows(
        "vision", CASE, [run(10.0, a=[1.0, 2.0], b=[5.0])], [run(work(9, 90), a=[work(2, 20)] * 2, b=[work(4, 40)])]
    )
    assert [(r.name, r.calls, r.median_ms, r.p95_ms, r.work.flops, r.work.nbytes) for r in rows] == [
        ("a", 2, 3.0, 3.0, 4, 40),
        ("b", 1, 5.0, 5.0, 4, 40),
        (UNATTRIBUTED, 1, 2.0, 2.0, 1, 10),
    ]
    assert [row.share for row in rows] == [0.3, 0.5, 0.2]
    assert {(row.phase, row.case) for row in rows} == {("vision", CASE)}


def test_rows_add_up_to_the_median_of_the_phase():
    times = [run(total, a=[total * 0.3], b=[total - 7.0]) for total in (10.0, 12.0, 30.0, 11.0, 13.0, 10.5)]
    rows = layer_rows("decode", CASE, times, [])
    assert sum(row.median_ms for row in rows) == pytest.approx(11.5)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert all(row.p95_ms >= row.median_ms for row in rows)


def test_percentile_is_never_below_the_median():
    times = [run(total, a=[1.0]) for total in (10.0, 10.0, 20.0, 20.0, 20.0)]
    steady = layer_rows("decode", CASE, times, [])[0]
    assert steady.p95_ms == steady.median_ms == pytest.approx(1.2)


def test_disturbed_runs_do_not_change_shares():
    quiet = [run(10.0, a=[4.0], b=[6.0])] * 6
    disturbed = [run(90.0, a=[84.0], b=[6.0]), run(50.0, a=[4.0], b=[46.0])]
    a, b, rest = layer_rows("decode", CASE, [*quiet, *disturbed], [])
    assert (a.share, b.share, rest.share) == pytest.approx((0.4, 0.6, 0.0))
    assert (a.median_ms, a.p95_ms) == (4.0, 84.0)


def test_work_is_the_median_over_the_runs_of_a_caption():
    times = [run(1.0, a=[1.0])] * 3
    counted = [run(work(n), a=[work(n)]) for n in (10, 20, 60)]
    assert [row.work.flops for row in layer_rows("decode", CASE, times, counted)] == [20, 0]
    assert [row.work for row in layer_rows("decode", CASE, times, [])] == [None, None]


def test_phase_without_layers_has_no_rows():
    assert layer_rows("connector", CASE, [run(0.01)], []) == []


def test_phase_that_took_no_time_has_no_shares():
    assert [row.share for row in layer_rows("connector", CASE, [run(0.0, a=[0.0])], [])] == [0.0, 0.0]


def test_what_hooks_took_is_a_row_of_its_own_and_never_more_than_the_rest():
    times = [Sample(total=10.0, layers={"a": [2.0, 5.0]}, hooked=2)]
    rows = layer_rows("vision", CASE, times, [], hook_ms=0.5)
    assert [(row.name, row.calls, row.median_ms) for row in rows] == [
        ("a", 2, pytest.approx(7.0)),
        (HOOKS, 2, pytest.approx(1.0)),
        (UNATTRIBUTED, 1, pytest.approx(2.0)),
    ]
    dear = layer_rows("vision", CASE, times, [], hook_ms=9.0)
    assert [row.median_ms for row in dear] == pytest.approx([7.0, 3.0, 0.0])
    assert sum(row.share for row in dear) == pytest.approx(1)


def test_records_hold_figures_against_the_ceilings():
    ceilings = Ceilings(flops_per_s=1e9, matrix_side=1, bytes_per_s=1e8, buffer_bytes=1)
    (row, _) = layer_rows("decode", CASE, [run(2.0, a=[2.0])], [run(work(10**6, 4), a=[work(10**6, 10**5)])])
    record = row.to_json(ceilings)
    assert (record["flops_per_s"], record["matrix_share"]) == pytest.approx((5e8, 0.5))
    assert (record["bytes_per_s"], record["bandwidth_share"]) == pytest.approx((5e7, 0.5))
    without = row.to_json(None)
    assert (without["flops_per_s"], without["matrix_share"], without["bandwidth_share"]) == (5e8, None, None)


def test_memory_of_a_layer_is_the_most_of_all_runs():
    counted = [run(work(1), a=[Work(flops=1, nbytes=1, peak=peak)]) for peak in (5, 9, 7)]
    rows = layer_rows("decode", CASE, [run(1.0, a=[1.0])] * 3, counted)
    assert rows[0].work.peak == 9
