"""In which order examples come, and who of several processes gets which."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.training.batches import Batch, batches
from mmt_cli.training.order import START, Job, Position, batches_per_epoch, buffered, mixed_seed, plan, shuffled


def full(count: int, seed: int = 0):
    return lambda epoch: shuffled(count, seed=seed, epoch=epoch)


@pytest.mark.parametrize("count", [0, 1, 5, 70_000])
def test_shuffled_yields_every_index_once(count):
    order = list(shuffled(count, seed=1, epoch=2))
    assert sorted(order) == list(range(count))
    assert order == list(shuffled(count, seed=1, epoch=2))


def test_seed_and_epoch_change_the_order():
    orders = [tuple(shuffled(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert mixed_seed(1, 12) != mixed_seed(11, 2)


def test_an_order_stays_what_it_was_in_earlier_versions():
    assert list(shuffled(8, seed=0, epoch=0)) == [7, 1, 6, 0, 5, 3, 2, 4]
    assert list(buffered([4, 4], size=3, seed=0, epoch=0)) == [4, 7, 0, 1, 2, 6, 5, 3]


lengths = st.lists(st.integers(0, 12), max_size=5)


@given(lengths, st.integers(1, 20), st.integers(0, 3))
def test_buffered_yields_every_index_once(files, size, epoch):
    assert sorted(buffered(files, size=size, seed=0, epoch=epoch)) == list(range(sum(files)))


@given(lengths, st.integers(1, 8), st.integers(0, 3))
def test_buffered_reads_files_from_start_to_end_within_its_window(files, size, epoch):
    order = list(buffered(files, size=size, seed=0, epoch=epoch))
    in_order = list(buffered(files, size=1, seed=0, epoch=epoch))
    owner = [number for number, length in enumerate(files) for _ in range(length)]
    runs = [list(group) for _, group in itertools.groupby(in_order, key=owner.__getitem__)]
    assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)
    assert len(runs) == sum(length > 0 for length in files)
    place = {index: number for number, index in enumerate(in_order)}
    assert all(place[index] < number + size for number, index in enumerate(order))


def test_buffered_mixes_and_draws_files_anew_each_epoch():
    assert len({tuple(buffered([3] * 8, size=1, seed=0, epoch=epoch)) for epoch in range(6)}) == 6
    order = list(buffered([100], size=10, seed=0, epoch=0))
    assert order != list(range(100))
    assert order[:10] != sorted(order[:10])


def epoch_of(count: int, batch_size: int, world: int, start: Position = START) -> list[list[Job]]:
    """Return the jobs of each process in epoch 0."""
    plans = [
        plan(full(count), count, batch_size=batch_size, rank=rank, world=world, start=start) for rank in range(world)
    ]
    return [list(itertools.takewhile(lambda job: job.epoch == 0, jobs)) for jobs in plans]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_each_example_is_in_one_batch_of_one_process(count, batch_size, world):
    ranks = epoch_of(count, batch_size, world)
    if count < world:  # the whole epoch joins the next one
        assert ranks == [[]] * world
        return
    assert Counter(index for jobs in ranks for job in jobs for index in job.indices) == Counter(range(count))
    assert {len(jobs) for jobs in ranks} == {batches_per_epoch(count, batch_size, world)}
    for together in zip(*ranks, strict=True):
        sizes = [len(job.indices) for job in together]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size + 1
        assert len({job.after for job in together}) == 1


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.data())
def test_a_plan_goes_on_from_any_place_as_if_never_cut(count, batch_size, world, data):
    whole = plan(full(count), count, batch_size=batch_size, rank=world - 1, world=world)
    jobs = list(itertools.islice(whole, 25))
    cut = data.draw(st.integers(1, 20))
    rest = plan(full(count), count, batch_size=batch_size, rank=world - 1, world=world, start=jobs[cut - 1].after)
    assert list(itertools.islice(rest, 5)) == jobs[cut : cut + 5]


@given(st.integers(8, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_another_number_of_processes_takes_what_is_left_of_an_epoch(count, batch_size, before, after, data):
    first = epoch_of(count, batch_size, before)
    done = data.draw(st.integers(0, len(first[0])))
    seen = [index for jobs in first for job in jobs[:done] for index in job.indices]
    start = first[0][done - 1].after if done else START
    plans = [
        plan(full(count), count, batch_size=batch_size, rank=rank, world=after, start=start) for rank in range(after)
    ]
    while len(seen) < count:
        jobs = [next(process) for process in plans]
        seen += [index for job in jobs for index in job.indices]
        assert all(job.indices for job in jobs)
    assert set(seen) == set(range(count))
    assert len(seen) < count + after + batch_size * after  # a rest of fewer than `after` came with the next epoch
    assert Counter(seen).most_common(1)[0][1] <= 2


def test_batches_come_in_the_order_of_the_plan_with_their_place():
    made = batches(lambda indices, epoch: Batch(keys=(f"{epoch}: {indices}",), rows=()), plan(full(5), 5, batch_size=2))
    taken = list(itertools.islice(made, 8))
    jobs = list(itertools.islice(plan(full(5), 5, batch_size=2), 8))
    assert [batch.keys for batch in taken] == [(f"{job.epoch}: {job.indices}",) for job in jobs]
    assert [batch.after for batch in taken] == [job.after for job in jobs]
    assert taken[2].after == Position(epoch=0, taken=5)
    assert taken[3].after == Position(epoch=1, taken=2)
