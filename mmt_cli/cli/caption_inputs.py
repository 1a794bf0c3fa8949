"""The images that `mmt caption` is asked for."""

import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.lists import find_listed, open_list
from mmt_cli.captioning.shards import parse_shard, take_shard
from mmt_cli.captioning.sources import STDIN, find_images
from mmt_cli.cli.caption_request import Request
from mmt_cli.errors import UsageError


def find(request: Request, excluded: Collection[tuple[int, int]]) -> Iterator[Item]:
    """Yield this machine's share of what arguments and list name.

    Args:
        request: names them.
        excluded: (device, inode) of what the run writes.

    Raises:
        UsageError: nothing is named, or nothing found.
    """
    shard = None if request.shard is None else parse_shard(request.shard)
    items = _named(request, excluded)
    first = next(items, None)
    if first is None:
        raise UsageError(_nothing_found(request))
    items = itertools.chain([first], items)
    return items if shard is None else take_shard(items, shard)


def limit_failures(items: Iterator[Item], limit: str | None) -> tuple[Iterator[Item], int | None]:
    """Return the items and how many of them may fail; a percentage is one of all items, so it has them counted."""
    if limit is None:
        return items, None
    if not limit.endswith("%"):
        return items, int(limit)
    counted = list(items)
    return iter(counted), int(len(counted) * Fraction(limit[:-1]) / 100)


def _named(request: Request, excluded: Collection[tuple[int, int]]) -> Iterator[Item]:
    paths: Sequence[str] = request.paths or ()
    if not paths and request.files_from is None:
        raise UsageError("no image named (PATHS is empty); name images or folders, or - for an image on stdin")
    if paths.count(STDIN) > 1:
        raise UsageError(f"stdin holds one image ('-' is named {paths.count(STDIN)} times); name it once")
    if STDIN in paths and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("stdin is a terminal ('-' reads an image from it); pipe an image in, or name a file")
    found = find_images(paths, recursive=request.recursive, excluded=excluded)
    if request.files_from is None:
        return found
    file = open_list(request.files_from)
    listed = find_listed(
        file, null=request.null, name=request.files_from, recursive=request.recursive, excluded=excluded
    )
    return itertools.chain(found, listed)


def _nothing_found(request: Request) -> str:
    names = [*(request.paths or ()), *([] if request.files_from is None else [request.files_from])]
    where = f"'{names[0]}'" if len(names) == 1 else f"{len(names)} places"
    advice = "name another folder" if request.recursive else "add -r to search folders inside, or name another one"
    return f"no image found (in {where}, by suffix); {advice}"
