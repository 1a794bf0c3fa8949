"""Sentences to learn a language from: plain text files, or the captions of a data set without their images."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from mmt_cli.errors import DataError
from mmt_cli.training.data import TEXT_SUFFIXES, expand_all, read_source
from mmt_cli.training.findings import Findings
from mmt_cli.training.formats.reading import Reading, Split
from mmt_cli.training.records import MAX_CAPTION_CHARACTERS, os_errors_named, printable, sentence

# Bytes; no sentence of this many is allowed, and a compressed file may hold a line far larger than the memory.
_MAX_LINE = 4 * MAX_CAPTION_CHARACTERS + 2


def open_sentences(
    sources: Sequence[str | os.PathLike[str]],
    *,
    images: Path | None = None,
    split: Split = "train",
    findings: Findings | None = None,
) -> list[str]:
    """Read `.txt` and `.txt.gz` files, a sentence a line, and the captions of what `open_dataset` reads.

    Blank lines are skipped; the rest is stripped, white space collapsed. A range in braces stands for several sources.

    Args:
        sources: the files and data sets, in this order.
        images: the folder that lists name images in, as in `open_dataset`.
        split: of Karpathy's files.
        findings: counts what is found, and says how many entries may be broken; by default none.

    Raises:
        BrokenDataError: a source cannot be read, or more is broken than the findings allows.
        DataError: there is nothing to read.
    """
    findings = Findings() if findings is None else findings
    reading = Reading(findings=findings, images=images, split=split)
    sentences = [found for name in expand_all(sources) for found in _read(name, reading)]
    findings.check()
    if not sentences:
        what = f"no sentence is left ({findings.broken} broken entries)" if findings.broken else "no data set named"
        raise DataError(f"{what}; name a .txt or .txt.gz file, or a data set with captions")
    return sentences


def _read(source: str, reading: Reading) -> Iterator[str]:
    if source.lower().endswith(TEXT_SUFFIXES) and Path(source).is_file():
        yield from _read_text(Path(source), reading.findings)
        return
    for part in read_source(source, reading):
        for index in range(len(part)):
            yield from part.captions(index)


def _read_text(path: Path, findings: Findings) -> Iterator[str]:
    before = findings.problems, findings.captions
    try:
        for number, line in enumerate(_lines(path), 1):
            try:
                found = sentence(line, f"{printable(path)} line {number}")
            except DataError as problem:
                findings.refuse(problem)
                continue
            if found is not None:
                findings.take(1, images=0)
                yield found
        if before == (findings.problems, findings.captions):
            raise DataError(f"no sentences in {printable(path)}; name a file that has some")
    except DataError as problem:
        findings.lose(problem)


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
