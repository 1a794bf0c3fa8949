"""What to caption: files, folders and stdin, found lazily and in a fixed order. Looks at names, opens no image."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import IMAGE_SUFFIXES

STDIN = "-"
# More than any image below the default pixel cap; ends the reading of a stdin that never ends.
MAX_STDIN_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to caption.

    Attributes:
        path: what its record calls it, and where it lies: the argument as given, for a folder's images the folder as
            given + `/` + the relative name, `-` for stdin. Bytes in no encoding are lone surrogates, as `os.fsdecode`
            makes them.
        failure: why there is nothing to read, where that is known already.
    """

    path: str
    failure: ImageError | None = None

    def open(self) -> str | bytes:
        """Return what the image is to be read from: the path of its file, or the bytes on stdin.

        Raises:
            ImageError: there is nothing to read.
        """
        if self.failure is not None:
            raise self.failure
        return _read_stdin() if self.path == STDIN else self.path


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("missing", "stdin is closed (an image is expected there); pipe one in, or name a file")
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise ImageError("too_large", f"stdin holds too much (more than {MAX_STDIN_BYTES} bytes); pipe one image in")
    return data


def find_images(paths: Iterable[str], *, recursive: bool) -> Iterator[Item]:
    """Yield what to caption, in the order of `paths`, within folders in natural order.

    A named file is taken whatever its name; in folders, hidden files included, the suffix decides. What is not there
    is an item too: reading it fails.

    Args:
        paths: image files, folders, or `-` for one image on stdin.
        recursive: whether the folders inside a folder are searched as well; symlinks are followed, each folder once.
    """
    for path in paths:
        if path != STDIN and _is_folder(path):
            yield from _walk(path, recursive=recursive)
        else:
            failure = None if path else ImageError("missing", "the path is empty; name an image")
            yield Item(path=path, failure=failure)


def names_one_file(paths: Sequence[str]) -> bool:
    """Say whether the arguments are one image by name, whose caption needs no path beside it."""
    return len(paths) == 1 and (paths[0] == STDIN or not _is_folder(paths[0]))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return the sort key that puts `img2` before `img10`, and upper and lower case side by side."""
    # Splitting at a group puts texts on even and numbers on odd places, so unlike types never meet.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 — Path.is_dir raises for names that are too long


def _walk(top: str, *, recursive: bool) -> Iterator[Item]:
    """Yield the images in a folder; with a stack of its own, since folders nest deeper than Python's calls."""
    seen: set[tuple[int, int]] = set()
    stack: list[Iterator[Item | str]] = [iter([top.rstrip("/") + "/"])]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif isinstance(found, Item):
            yield found
        elif _is_new(found, seen):
            stack.append(_list(found, recursive=recursive))


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Say whether a folder is met for the first time: a symlink may lead back to one."""
    try:
        status = Path(folder).stat()
    except OSError:
        return True  # listing it says what is wrong
    before = len(seen)
    seen.add((status.st_dev, status.st_ino))
    return len(seen) > before


def _list(folder: str, *, recursive: bool) -> Iterator[Item | str]:
    """Yield what one folder holds in natural order: images as items, folders as paths that end in `/`."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        what = f"{folder} cannot be listed ({error.strerror}); check its permissions"
        yield Item(path=folder.rstrip("/"), failure=ImageError("unreadable", what))
        return
    for entry in found:
        path = folder + entry.name
        is_folder = _is_folder(path) if entry.is_symlink() else entry.is_dir()
        if is_folder and recursive:
            yield path + "/"
        elif not is_folder and entry.name.lower().endswith(tuple(IMAGE_SUFFIXES)):
            yield Item(path=path)
