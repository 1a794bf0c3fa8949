"""The images in a folder, in natural order. Looks at names, opens no file, and holds little for each name."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.order import in_order, rough_key
from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import IMAGE_SUFFIXES

_SUFFIXES = tuple(IMAGE_SUFFIXES)


def is_folder(path: str) -> bool:
    """Say whether `path` is a folder, or a symlink to one; raises nothing."""
    return os.path.isdir(path)  # noqa: PTH112 — Path.is_dir raises for names that are too long


def is_image_name(name: str) -> bool:
    """Say whether a name ends like an image's."""
    return name.lower().endswith(_SUFFIXES)


def images_in_folder(top: str, *, recursive: bool, excluded: Collection[tuple[int, int]] = ()) -> Iterator[Item]:
    """Yield the images in a folder, hidden ones too; the suffix decides.

    What cannot be listed is an item that fails.

    Args:
        top: the folder as given; starts the items' paths.
        recursive: whether the folders inside are searched as well; symlinks are followed, each folder once.
        excluded: (device, inode) of files that are no images whatever their names.
    """
    seen: set[tuple[int, int]] = set()
    # A stack of its own, since folders nest deeper than Python's calls.
    stack: list[Iterator[Item | str]] = [iter([top.rstrip("/") + "/"])]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif isinstance(found, str):
            if _is_new(found, seen):
                stack.append(_list(found, recursive=recursive))
        elif not excluded or _identity(found.path) not in excluded:
            yield found


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Say whether a folder is met for the first time: a symlink may lead back to one."""
    identity = _identity(folder)
    if identity is None:
        return True  # listing it says what is wrong
    before = len(seen)
    seen.add(identity)
    return len(seen) > before


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from all others, whatever path leads to it: device and inode; None if it is not there.

    Asked of the file, since the inodes that some file systems list in a folder are not those of its files.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _list(folder: str, *, recursive: bool) -> Iterator[Item | str]:
    """Yield what one folder holds in natural order: images as items, folders as paths that end in `/`."""
    # An entry of a listing takes several times the memory of its name, a tuple as a key several times that of bytes.
    keys: list[bytes] = []
    failure = None
    try:
        with os.scandir(folder) as entries:
            keys.extend(key for entry in entries if (key := _key(entry, recursive=recursive)))
    except OSError as error:
        what = f"{folder} cannot be listed ({error.strerror}); check its permissions"
        failure = Item(path=folder.rstrip("/"), failure=ImageError("unreadable", what))
    for name in in_order(keys):
        yield folder + name if name.endswith("/") else Item(path=folder + name)
    if failure is not None:
        yield failure


def _key(entry: os.DirEntry[str], *, recursive: bool) -> bytes:
    """Return the key by which an image or, with a `/` at its end, a folder is kept; nothing for anything else."""
    is_image = is_image_name(entry.name)
    if not (is_image or recursive):
        return b""
    # Of a symlink that leads in circles, the entry itself raises an error.
    leads_inside = is_folder(entry.path) if entry.is_symlink() else entry.is_dir()
    if leads_inside:
        return rough_key(entry.name + "/") if recursive else b""
    return rough_key(entry.name) if is_image else b""
