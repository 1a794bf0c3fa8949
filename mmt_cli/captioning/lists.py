"""Lists of what to caption, read as they come: names, or JSON lines with a prompt each."""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.sources import STDIN, images_at
from mmt_cli.errors import ImageError, UsageError, shown

MAX_ENTRY_BYTES = 1 << 20
_CHUNK = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_list(name: str) -> io.BufferedIOBase:
    """Open a list for `read_list`: a file, a pipe, or stdin by the name of `-`.

    Raises:
        UsageError: it cannot be read.
    """
    if name != STDIN:
        try:
            return Path(name).open("rb")
        except OSError as error:
            raise _unreadable(name, error) from error
    if sys.stdin is None:
        raise UsageError("stdin is closed (--files-from - reads a list from it); pipe a list in, or name its file")
    if sys.stdin.isatty():
        raise UsageError("stdin is a terminal (--files-from - reads a list from it); pipe a list in, or name its file")
    return cast(io.BufferedIOBase, sys.stdin.buffer)


def find_listed(
    file: io.BufferedIOBase,
    *,
    null: bool,
    name: str,
    recursive: bool,
    excluded: Collection[tuple[int, int]] = (),
) -> Iterator[Item]:
    """Yield what a list names: an image, or all images of a folder or `.tar` shard, each with the entry's prompt.

    Args:
        file: the list.
        null: whether its entries end in NUL, see `read_list`.
        name: what errors call it.
        recursive: see `find_images`.
        excluded: see `find_images`.

    Raises:
        UsageError: the list cannot be read.
    """
    for entry in read_list(file, null=null, name=name):
        if entry.failure is not None:
            yield entry
            continue
        for item in images_at(entry.path, recursive=recursive, excluded=excluded):
            yield item if entry.prompt is None else dataclasses.replace(item, prompt=entry.prompt)


def read_list(file: io.BufferedIOBase, *, null: bool, name: str) -> Iterator[Item]:
    r"""Yield the entries of a list as it comes in: paths as they stand there, and prompts.

    A line is a name, or `{"path": NAME, "prompt": TEXT}`, whose prompt may be missing. It ends in `\n` or `\r\n`; empty
    ones are skipped. A name that looks like JSON, or that holds a newline, can be given with `null`.

    Args:
        file: the list.
        null: whether entries end in NUL and are names to the letter.
        name: what errors call it.

    Raises:
        UsageError: the list cannot be read, or an entry is longer than `MAX_ENTRY_BYTES`.
    """
    pieces = _split(file, b"\0" if null else b"\n", name)
    if null:
        yield from (Item(path=os.fsdecode(piece)) for piece in pieces if piece)
        return
    for index, piece in enumerate(pieces):
        line = (piece if index else piece.removeprefix(_BYTE_ORDER_MARK)).removesuffix(b"\r")
        if line:
            yield _json_entry(line) or Item(path=os.fsdecode(line))


def _split(file: io.BufferedIOBase, separator: bytes, name: str) -> Iterator[bytes]:
    """Yield what stands between separators, each as soon as the one behind it has come in; the last may have none."""
    pending = bytearray()
    while chunk := _read(file, name):
        for index, piece in enumerate(chunk.split(separator)):
            if index:
                yield bytes(pending)
                pending.clear()
            pending += piece
            if len(pending) > MAX_ENTRY_BYTES:
                what = f"an entry of {shown(name)} is too long (more than {MAX_ENTRY_BYTES} bytes)"
                raise UsageError(f"{what}; end names with a newline, or with NUL and give -0")
    yield bytes(pending)


def _read(file: io.BufferedIOBase, name: str) -> bytes:
    """Return the next bytes that are there, without waiting for more; none at the end."""
    try:
        return file.read1(_CHUNK)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> UsageError:
    return UsageError(
        f"the list cannot be read ({shown(name)}: {error.strerror}); name a readable file, or - for stdin"
    )


def _json_entry(line: bytes) -> Item | None:
    """Return what a line of JSON names; None if it is no such line."""
    if not line.startswith(b"{"):
        return None
    try:
        entry = json.loads(os.fsdecode(line))
    except (ValueError, RecursionError):
        return None
    path = entry.get("path")
    if not isinstance(path, str):
        return None
    prompt = entry.get("prompt")
    if prompt is None or (isinstance(prompt, str) and _is_text(prompt)):
        return Item(path=path, prompt=prompt)
    what = f"{path} has a prompt that is no text (got {shown(prompt)}); give a string, or null for the run's prompt"
    return Item(path=path, failure=ImageError("unsupported", what))


def _is_text(value: str) -> bool:
    """Say whether no lone surrogates stand in a string: tokenizers cannot read them."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)
