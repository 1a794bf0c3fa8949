"""Caption data sets: which images with which captions. Only an index is built; image bytes are read when asked for."""

import itertools
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmt_cli.errors import DataError
from mmt_cli.training.examples import Examples, Part
from mmt_cli.training.findings import Findings
from mmt_cli.training.formats.annotations import read_json
from mmt_cli.training.formats.folder import read_folder
from mmt_cli.training.formats.jsonl import read_jsonl
from mmt_cli.training.formats.reading import Reading, Split
from mmt_cli.training.formats.shard import read_shard
from mmt_cli.training.formats.table import read_table
from mmt_cli.training.records import is_url, os_errors_named, printable

MAX_BRACE_NAMES = 100_000
TEXT_SUFFIXES = (".txt", ".txt.gz")  # of sentences without images

_BRACES = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_Reader = Callable[[Path, Reading], Part]
_READERS: dict[str, _Reader] = {  # by suffix; a folder has `read_folder`
    ".tar": read_shard,
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".json": read_json,
}


def open_dataset(
    sources: Sequence[str | os.PathLike[str]],
    *,
    images: Path | None = None,
    split: Split = "train",
    findings: Findings | None = None,
) -> Examples:
    """Index data sets in the order named.

    Args:
        sources: folders of images with `.txt` sidecars, or files of `formats`; a range in braces stands for several,
            see `expand_braces`.
        images: the folder that lists (`.jsonl`, `.csv`, `.tsv`, `.json`) name images in; None: each list's own.
        split: of Karpathy's files.
        findings: counts what is found, and says how many entries may be broken; by default none.

    Raises:
        BrokenDataError: a source cannot be read, or more entries are broken than the findings allows.
        DataError: there is nothing to read.
    """
    findings = Findings() if findings is None else findings
    reading = Reading(findings=findings, images=images, split=split)
    examples = Examples([part for name in expand_all(sources) for part in read_source(name, reading)])
    findings.check()
    if not examples:
        what = f"no image is left ({findings.broken} broken entries)" if findings.broken else "no data set named"
        raise DataError(f"{what}; name a .tar shard, a .jsonl file or a folder of images")
    return examples


def expand_all(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Every source that `sources` name, see `expand_braces`."""
    return [name for source in sources for name in expand_braces(os.fspath(source))]


def expand_braces(source: str) -> list[str]:
    """Number ranges as in bash: `a-{08..10}.tar` gives a-08.tar, a-09.tar, a-10.tar; an existing path stays itself."""
    if os.path.lexists(source):
        return [source]
    texts, ranges = _BRACES.split(source)[::3], _BRACES.findall(source)
    names = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)
    if names > MAX_BRACE_NAMES:
        raise DataError(f"{printable(source)} stands for {names} names, more than {MAX_BRACE_NAMES}; shorten the range")
    pieces = [
        [text + number for number in _brace_numbers(*ends)] for text, ends in zip(texts[:-1], ranges, strict=True)
    ]
    return ["".join(chosen) + texts[-1] for chosen in itertools.product(*pieces)]


def _brace_numbers(first: str, last: str) -> list[str]:
    """Upwards or downwards, all as wide as the wider end where an end starts with a zero."""
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 1
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]


def read_source(source: str, reading: Reading) -> Iterator[Part]:
    """Yield what a source holds, if it holds anything; its problems go to the findings."""
    findings = reading.findings
    before = findings.problems
    try:
        part = _reader(source)(Path(source), reading)
        if not part and findings.problems == before:
            raise DataError(f"no images in {printable(source)}; {_advice(Path(source))}")
        yield part
    except DataError as problem:
        findings.lose(problem)


def _advice(path: Path) -> str:
    """What to name instead of a source without images."""
    if path.is_dir() and any(entry.suffix.lower() == ".tar" for entry in path.iterdir()):
        return f"name its shards, such as {printable(path / '*.tar')}"
    return "name a data set that has some"


def _reader(source: str) -> _Reader:
    if is_url(source):
        raise DataError(f"{printable(source)} is a URL; download it and name the file")
    path = Path(source)
    with os_errors_named(source):
        if path.is_dir():
            return read_folder
        if path.is_file() and path.suffix.lower() in _READERS:
            return _READERS[path.suffix.lower()]
        if stat.S_ISFIFO(path.stat().st_mode):
            raise DataError(
                f"{printable(source)} is a pipe, which can be read once, and data are read again and again; save it"
            )
    if source.lower().endswith(TEXT_SUFFIXES):
        raise DataError(f"{printable(source)} holds text without images; learn from it with --objective language")
    known = ", ".join(_READERS)
    raise DataError(f"{printable(source)} is not a data set that can be read; name a folder of images or a {known}")
