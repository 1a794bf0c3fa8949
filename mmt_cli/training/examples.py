"""The examples of a data set: an index that is small however large the data are; the rest is read when asked for."""

import itertools
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self, overload

from mmt_cli.errors import DataError
from mmt_cli.training.records import os_errors_named, printable


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with its captions. Can be sent to other processes, and read by several threads at once."""

    key: str  # the image's name for messages: its path, or SHARD.tar/KEY.jpg
    captions: tuple[str, ...]  # at least one; stripped, white space collapsed
    file: Path  # absolute; the image, or the archive that holds it
    offset: int = 0  # bytes from the start of `file`
    size: int | None = None  # bytes; None: to the end of `file`
    modified_ns: int | None = None  # an archive's time stamp when it was indexed; None: not an archive

    def read(self) -> bytes:
        """Return the encoded image; DataError where it is gone or its archive is not the one that was indexed."""
        with os_errors_named(self.key), self.file.open("rb") as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> bytes:
        """Return the same from its file, which is open."""
        unchanged = self.modified_ns in (None, os.fstat(file.fileno()).st_mtime_ns)
        file.seek(self.offset)
        data = file.read() if self.size is None else file.read(self.size)
        if unchanged and self.size in (None, len(data)):
            return data
        raise changed(self.file)


def changed(path: Path) -> DataError:
    """Return the error for a file that is not the one that was indexed."""
    return DataError(f"{printable(path)} changed since it was indexed; leave it as it is and start again")


class Part(Protocol):
    """The examples of one source. Can be sent to other processes, and used by several threads at once."""

    def __len__(self) -> int:
        """Count them."""

    def __getitem__(self, index: int) -> Example:
        """Return one; DataError where it is no longer what it was when it was indexed."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Return its captions, without a look at its image."""


class Examples(Sequence[Example]):
    """All examples of a data set, those of its sources one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]

    @property
    def lengths(self) -> list[int]:
        """How many examples each source has."""
        return [len(part) for part in self.parts]

    @property
    def captions(self) -> "Captions":
        """The captions of each example."""
        return Captions(self)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part, place = self.place(index)
        return part[place]

    def place(self, index: int) -> tuple[Part, int]:
        """Return the source that has an example, and the example's place there."""
        index = range(len(self))[index]  # negative ones, and IndexError
        number = bisect_right(self._starts, index) - 1
        return self.parts[number], index - self._starts[number]


class Captions(Sequence[tuple[str, ...]]):
    """The captions of each example, read when they are asked for."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part, place = self.examples.place(index)
        return part.captions(place)


class Packed:
    """Examples in one block of bytes, less than half of the size they would have as objects."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])

    def append(self, example: Example) -> None:
        """Add one."""
        fields = (example.key, example.captions, str(example.file), example.offset, example.size, example.modified_ns)
        self._data += json.dumps(fields).encode()
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Example:
        key, captions, file, offset, size, modified_ns = json.loads(self._data[slice(*self._ends[index : index + 2])])
        return Example(
            key=key, captions=tuple(captions), file=Path(file), offset=offset, size=size, modified_ns=modified_ns
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of one."""
        return self[index].captions


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text file that examples are read from again and again, as it was when it was indexed."""

    path: Path  # absolute
    name: str  # for messages, printable
    size: int  # bytes
    modified_ns: int

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> Self:
        """Return the file that is open as `file`."""
        status = os.fstat(file.fileno())
        return cls(path=path.absolute(), name=printable(path), size=status.st_size, modified_ns=status.st_mtime_ns)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it.

        Raises:
            DataError: it is gone or changed.
        """
        with os_errors_named(self.path), self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
                raise changed(self.path)
            yield file
