"""Archives read from one end to the other, once an epoch, for disks on which jumping about takes long."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mmt_cli.training.examples import Example, Examples
from mmt_cli.training.order import Job, Order, Position
from mmt_cli.training.records import os_errors_named

HELD_BYTES = 2**30  # at most, of images that are read and not yet asked for
_BLOCK = 2**20  # bytes read at a time; what lies between two images is read over rather than jumped over


class SequentialReader:
    """The encoded images of a data set, read ahead in the order in which they lie in their archives.

    Images that a shuffle buffer has passed over are held until they are asked for. Of other processes' images, and of
    those that the epoch is already done with, nothing is read. What would be more than `HELD_BYTES` to hold is read
    again when it is asked for, as are images that lie in files of their own. Can be used by several threads at once.
    """

    def __init__(self, examples: Examples, arrivals: Order) -> None:
        """Read nothing yet.

        Args:
            examples: of the data set.
            arrivals: epoch → the order in which examples come into the shuffle buffer.
        """
        self.examples = examples
        self.arrivals = arrivals
        self._start = Position()
        self._jobs: Callable[[Position], Iterator[Job]] | None = None
        self._passes: dict[int, _Pass] = {}
        self._lock = threading.Lock()

    def follow(self, jobs: Callable[[Position], Iterator[Job]], start: Position) -> None:
        """Learn what will be asked for.

        Args:
            jobs: place in the data → the jobs from there on.
            start: of the run.
        """
        self._jobs, self._start = jobs, start
        for done in self._passes.values():
            done.close()
        self._passes.clear()

    def read(self, index: int, epoch: int) -> bytes:
        """Return the encoded image of an example in an epoch; DataError as `Example.read` has it."""
        example = self.examples[index]
        if self._jobs is None or example.size is None:
            return example.read()
        with self._lock:
            data = self._pass(epoch).take(index)
        return example.read() if data is None else data

    def _pass(self, epoch: int) -> "_Pass":
        if epoch not in self._passes:
            for older in [number for number in self._passes if number < epoch - 1]:  # threads may be an epoch apart
                self._passes.pop(older).close()
            self._passes[epoch] = _Pass(self.examples, self.arrivals(epoch), self._wanted(epoch))
        return self._passes[epoch]

    def _wanted(self, epoch: int) -> bytearray:
        """Return a 1 for each example that this process takes in what is left of an epoch."""
        assert self._jobs is not None, "asked before `follow`"
        start = self._start if self._start.epoch == epoch else Position(epoch=epoch)
        marks = bytearray(len(self.examples))
        for job in itertools.takewhile(lambda job: job.epoch == epoch, self._jobs(start)):
            for index in job.indices:
                marks[index] = 1
        return marks


class _Pass:
    """One way through all archives."""

    def __init__(self, examples: Examples, arrivals: Iterator[int], wanted: bytearray) -> None:
        self.examples = examples
        self._coming = arrivals
        self._wanted = wanted  # and not yet there
        self._held: dict[int, bytes] = {}
        self._bytes = 0
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def take(self, index: int) -> bytes | None:
        """Return the image of an example and hold it no longer; None where it has gone by."""
        while self._wanted[index]:
            arrived = next(self._coming)
            if not self._wanted[arrived]:
                continue
            self._wanted[arrived] = 0
            example = self.examples[arrived]
            if arrived == index:
                return self._read(example)
            if example.size is not None and self._bytes + example.size <= HELD_BYTES:
                self._held[arrived] = self._read(example)
                self._bytes += example.size
        data = self._held.pop(index, None)
        self._bytes -= len(data or b"")
        return data

    def _read(self, example: Example) -> bytes:
        with os_errors_named(example.key):
            if self._file is None or self._path != example.file:
                self.close()
                self._file, self._path = example.file.open("rb", buffering=_BLOCK), example.file
            return example.read_from(self._file)

    def close(self) -> None:
        """Close the archive that is open, if one is."""
        if self._file is not None:
            self._file.close()
        self._file = None
