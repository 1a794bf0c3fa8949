"""What to caption: files, folders, archives and stdin, found lazily and in a fixed order. Opens no image."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from mmt_cli.captioning.archives import images_in_archive, is_archive
from mmt_cli.captioning.folders import images_in_folder, is_folder
from mmt_cli.captioning.items import MAX_STDIN_BYTES, Item
from mmt_cli.captioning.order import natural_key
from mmt_cli.errors import ImageError

__all__ = ["MAX_STDIN_BYTES", "STDIN", "Item", "find_images", "images_at", "names_one_file", "natural_key"]

STDIN = "-"


def find_images(paths: Iterable[str], *, recursive: bool, excluded: Collection[tuple[int, int]] = ()) -> Iterator[Item]:
    """Yield what to caption, in the order of `paths`, within folders in natural order, within archives in theirs.

    Args:
        paths: arguments: image files, folders, `.tar` shards, or `-` for one image on stdin.
        recursive: whether the folders inside a folder are searched as well.
        excluded: (device, inode) of files that are no images where a folder holds them: what the run writes.
    """
    for path in paths:
        if path == STDIN:
            yield Item(path=path, stdin=True)
        else:
            yield from images_at(path, recursive=recursive, excluded=excluded)


def images_at(path: str, *, recursive: bool, excluded: Collection[tuple[int, int]] = ()) -> Iterator[Item]:
    """Yield what one path leads to, see `find_images`; `-` is a file here.

    A named file is taken whatever its name. What is not there is an item too: reading it fails. Archives inside
    folders are not looked into.
    """
    if is_folder(path):
        yield from images_in_folder(path, recursive=recursive, excluded=excluded)
    elif is_archive(path):
        yield from images_in_archive(path)
    else:
        failure = None if path else ImageError("missing", "the path is empty; name an image")
        yield Item(path=path, failure=failure)


def names_one_file(paths: Sequence[str]) -> bool:
    """Say whether the arguments are one image by name, whose caption needs no path beside it."""
    return len(paths) == 1 and (paths[0] == STDIN or not (is_folder(paths[0]) or is_archive(paths[0])))
