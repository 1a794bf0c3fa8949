"""Sentences to learn a language from: plain text files, or the captions of a data set without their images."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from mmt_cli.errors import DataError
from mmt_cli.training.data import TEXT_SUFFIXES, expand_all, gather, read_source
from mmt_cli.training.records import MAX_CAPTION_CHARACTERS, os_errors_named, printable, sentence

# Bytes; no sentence of this many is allowed, and a compressed file may hold a line far larger than the memory.
_MAX_LINE = 4 * MAX_CAPTION_CHARACTERS + 2


def open_sentences(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Read `.txt` and `.txt.gz` files, a sentence a line, and the captions of what `open_dataset` reads.

    Blank lines are skipped; the rest is stripped, white space collapsed. A range in braces stands for several sources.

    Raises:
        DataError: states the first problem and counts the others.
    """
    sentences = gather(item for name in expand_all(sources) for item in _read(name))
    if not sentences:
        raise DataError("no data set named; name a .txt or .txt.gz file, or a data set with captions")
    return sentences


def _read(source: str) -> Iterator[str | DataError]:
    if source.lower().endswith(TEXT_SUFFIXES) and Path(source).is_file():
        yield from _read_text(Path(source))
        return
    for item in read_source(source):
        if isinstance(item, DataError):
            yield item
        else:
            yield from item.captions


def _read_text(path: Path) -> Iterator[str | DataError]:
    found = False
    try:
        for number, line in enumerate(_lines(path), 1):
            item = _attempt(line, f"{printable(path)} line {number}")
            if item is not None:
                found = True
                yield item
    except DataError as error:
        yield error
    else:
        if not found:
            yield DataError(f"no sentences in {printable(path)}; name a file that has some")


def _attempt(line: bytes, where: str) -> str | DataError | None:
    try:
        return sentence(line, where)
    except DataError as error:
        return error


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as text editors count them, whichever way they end."""
    with os_errors_named(path):
        try:
            with _opened(path) as file:
                while block := file.readline(_MAX_LINE):
                    if len(block) == _MAX_LINE:
                        raise DataError(f"{printable(path)} has a line of {_MAX_LINE} bytes or more; break it up")
                    yield from block.splitlines()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = printable(str(error))
            raise DataError(f"{printable(path)} is not a whole gzip file ({reason}); copy or make it again") from None


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
