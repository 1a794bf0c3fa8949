"""Archives that are read from one end to the other, whatever order a shuffle buffer makes of what they hold."""

import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mmt_cli.errors import DataError
from mmt_cli.training import sequential
from mmt_cli.training.data import open_dataset
from mmt_cli.training.events import Stepped
from mmt_cli.training.examples import Example, Examples
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import START, Job, Position, buffered, plan
from mmt_cli.training.sequential import SequentialReader

SIZE = 5  # of the shuffle buffer


def write_shard(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for index in range(count):
            stream = io.BytesIO()
            PIL.Image.new("RGB", (40, 32), (250, 9 * index, 0)).save(stream, "png")
            for suffix, data in ((".png", stream.getvalue()), (".txt", b"A red square " + b"on red " * (index % 3))):
                member = tarfile.TarInfo(f"{index:03}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for path, count in zip(paths, (20, 7, 13), strict=True):
        write_shard(path, count)
    return [str(path) for path in paths]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, int]]:
    """Which open file was read, its name, and where."""
    found: list[tuple[int, str, int]] = []
    opened: list[Any] = []  # kept, or another file could get its id
    read_from = Example.read_from

    def spied(self: Example, file: Any) -> bytes:
        opened.append(file)
        found.append((id(file), self.file.name, self.offset))
        return read_from(self, file)

    monkeypatch.setattr(Example, "read_from", spied)
    return found


def reader_of(
    examples: Examples, *, start: Position = START, rank: int = 0, world: int = 1
) -> tuple[SequentialReader, Iterator[Job]]:
    def jobs(place: Position) -> Iterator[Job]:
        def order(epoch: int) -> Iterator[int]:
            return buffered(examples.lengths, size=SIZE, seed=3, epoch=epoch)

        return plan(order, len(examples), batch_size=4, start=place, rank=rank, world=world)

    reader = SequentialReader(examples, lambda epoch: buffered(examples.lengths, size=1, seed=3, epoch=epoch))
    reader.follow(jobs, start)
    return reader, jobs(start)


def taken(jobs: Iterator[Job], epochs: int) -> list[tuple[int, int]]:
    """Return example and epoch of all that the jobs of so many epochs want."""
    return [(i, job.epoch) for job in itertools.takewhile(lambda job: job.epoch < epochs, jobs) for i in job.indices]


def go_through(reader: SequentialReader, jobs: Iterator[Job], epochs: int) -> list[int]:
    """Ask for all that the jobs of so many epochs want, and return it."""
    asked = taken(jobs, epochs)
    for index, epoch in asked:
        assert reader.read(index, epoch) == reader.examples[index].read()
    return [index for index, _ in asked]


def assert_forwards(reads: list[tuple[int, str, int]], files: int) -> None:
    """Each of so many files is open once, and read from its start to its end."""
    runs = [list(run) for _, run in itertools.groupby(reads, key=lambda read: read[0])]
    assert len(runs) == files
    for run in runs:
        offsets = [offset for _, _, offset in run]
        assert offsets == sorted(offsets)


def test_each_archive_is_opened_once_an_epoch_and_read_forwards(
    shards: list[str], reads: list[tuple[int, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, jobs = reader_of(open_dataset(shards))
    monkeypatch.setattr(Example, "read", lambda self: b"not needed")
    asked = [
        reader.read(i, job.epoch) and i for job in itertools.takewhile(lambda j: j.epoch < 2, jobs) for i in job.indices
    ]
    assert len(asked) == len(reads) == 80
    assert sorted(asked[:40]) == list(range(40)) != asked[:40]
    assert_forwards(reads, 6)


def test_every_image_is_itself(shards: list[str]) -> None:
    assert len(go_through(*reader_of(open_dataset(shards)), epochs=3)) == 120


def test_nothing_is_read_that_another_process_takes_or_that_was_taken_before(
    shards: list[str], reads: list[tuple[int, str, int]]
) -> None:
    examples = open_dataset(shards)
    for rank, start in itertools.product((0, 1), (START, Position(epoch=0, taken=24))):
        reads.clear()
        reader, jobs = reader_of(examples, start=start, rank=rank, world=2)
        asked = [
            reader.read(i, 0) and i for job in itertools.takewhile(lambda j: not j.epoch, jobs) for i in job.indices
        ]
        assert len(asked) == len(reads) == (40 - start.taken) / 2
        assert {(examples[i].file.name, examples[i].offset) for i in asked} == {read[1:] for read in reads}
        assert_forwards(reads, len({name for _, name, _ in reads}))


def test_no_more_is_held_than_is_allowed(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = open_dataset(shards)
    monkeypatch.setattr(sequential, "HELD_BYTES", 2 * (examples[0].size or 0) + 9)
    reader, jobs = reader_of(examples)
    most = 0
    for index, epoch in taken(jobs, epochs=2):
        assert reader.read(index, epoch) == examples[index].read()
        most = max(most, *(sum(map(len, held._held.values())) for held in reader._passes.values()))
    assert 0 < most <= sequential.HELD_BYTES
    assert all(not held._bytes and not held._held for held in reader._passes.values())


def test_threads_that_overtake_each_other_get_what_they_ask_for(shards: list[str]) -> None:
    examples = open_dataset(shards)
    reader, jobs = reader_of(examples)
    wanted = taken(jobs, epochs=4)
    with ThreadPoolExecutor(8) as threads:
        for (index, _), data in zip(wanted, threads.map(lambda pair: reader.read(*pair), wanted), strict=True):
            assert data == examples[index].read()


def test_images_in_files_of_their_own_are_read_when_they_are_asked_for(shards: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(6):
        PIL.Image.new("RGB", (40, 32), (0, 9 * index, 250)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("A blue square.\n", encoding="utf-8")
    assert len(go_through(*reader_of(open_dataset([shards[0], str(folder), shards[1]])), epochs=2)) == 66


def test_an_archive_that_changes_is_noticed(shards: list[str]) -> None:
    reader, jobs = reader_of(open_dataset(shards))
    next(jobs)
    for shard in shards:
        os.utime(shard, ns=(1, 1))
    with pytest.raises(DataError, match=r"changed since it was indexed"):
        go_through(reader, jobs, epochs=1)


def options(shards: list[str], out: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {"preset": "tiny", "steps": 8, "batch_size": 8, "save_every": 2, "warmup": 2, "lr": 5e-3}
    defaults |= {"shuffle_buffer": SIZE, "augment": ("flip",), "device": "cpu"}
    return TrainOptions(data=tuple(shards), out=out, **{**defaults, **changes})


def test_a_run_with_a_shuffle_buffer_reads_forwards(
    shards: list[str], tmp_path: Path, reads: list[tuple[int, str, int]]
) -> None:
    list(Trainer(options(shards, tmp_path / "out")).run())
    assert len(reads) >= 64
    files = sum(1 for _ in itertools.groupby(reads, key=lambda read: read[0]))
    assert files <= 9  # two epochs, and what is read ahead of a third
    assert_forwards(reads, files)


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_ends_at_the_same_bits(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(Trainer(options(shards, tmp_path / "whole")).run())
    events = Trainer(options(shards, tmp_path / "cut")).run()
    next(event for event in events if isinstance(event, Stepped) and event.step == 3)
    events.close()  # type: ignore[attr-defined]
    list(Trainer(options(shards, tmp_path / "cut", resume="auto")).run())
    monkeypatch.setattr(SequentialReader, "read", lambda self, index, epoch: self.examples[index].read())
    list(Trainer(options(shards, tmp_path / "jumping")).run())
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut", "jumping")}
    assert len(weights) == 1
