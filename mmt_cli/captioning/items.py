"""One image to caption, and reading its bytes from where it lies: a file, stdin, an archive."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mmt_cli.errors import ImageError

# More than any image below the default pixel cap; ends the reading of a stdin that never ends.
MAX_STDIN_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where an image lies within an uncompressed archive.

    Attributes:
        archive: path of the archive.
        offset: bytes before the image.
        size: bytes of the image.
        stamp: what `stamp_of` told when the archive was listed.
    """

    archive: str
    offset: int
    size: int
    stamp: tuple[int, int]

    def read(self, name: str) -> bytes:
        """Return the image's bytes; opens the archive anew, so threads do not meet.

        Args:
            name: what errors call the image.

        Raises:
            ImageError: it cannot be read, or the archive is no longer the one that was listed.
        """
        if self.size > MAX_STDIN_BYTES:
            what = f"{name} is too large ({self.size} bytes, at most {MAX_STDIN_BYTES}); make it smaller"
            raise ImageError("too_large", what)
        try:
            with Path(self.archive).open("rb") as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                file.seek(self.offset)
                data = file.read(self.size)
        except FileNotFoundError as error:
            raise ImageError("missing", f"{name} is gone: {self.archive} does not exist; put it back") from error
        except OSError as error:
            what = f"{name} cannot be read ({self.archive}: {error.strerror}); check path and permissions"
            raise ImageError("unreadable", what) from error
        if stamp != self.stamp:
            what = f"{name} cannot be read ({self.archive} changed since it was listed); start again"
            raise ImageError("unreadable", what)
        if len(data) < self.size:
            what = f"{name} is cut off ({len(data)} of {self.size} bytes); get a whole copy of {self.archive}"
            raise ImageError("truncated", what)
        return data


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Return what changes with a file: its time stamp in nanoseconds and its size in bytes."""
    return status.st_mtime_ns, status.st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One image to caption.

    Attributes:
        path: what its record calls it: the argument as given, for a folder's images the folder as given + `/` + the
            relative name, for those of an archive likewise, `-` for stdin. Bytes in no encoding are lone surrogates,
            as `os.fsdecode` makes them.
        failure: why there is nothing to read, where that is known already.
        prompt: its own prompt, which goes before the run's; None has none.
        stdin: whether it is read from stdin. A list may name a file that is called `-`.
        member: where it lies in an archive; None lies in no archive.
    """

    path: str
    failure: ImageError | None = None
    prompt: str | None = None
    stdin: bool = False
    member: Member | None = None

    @property
    def file(self) -> str | None:
        """Its file, beside which others can stand; None on stdin and in an archive."""
        return None if self.stdin or self.member is not None else self.path

    def open(self) -> str | bytes:
        """Return what the image is to be read from: the path of its file, or its bytes. Threads may call it at once.

        Raises:
            ImageError: there is nothing to read.
        """
        if self.failure is not None:
            raise self.failure
        if self.member is not None:
            return self.member.read(self.path)
        return _read_stdin() if self.stdin else self.path


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("missing", "stdin is closed (an image is expected there); pipe one in, or name a file")
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise ImageError("too_large", f"stdin holds too much (more than {MAX_STDIN_BYTES} bytes); pipe one image in")
    return data
