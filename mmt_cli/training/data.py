"""Caption data sets: which images with which captions. Only an index is built; image bytes are read when asked for.

One reader a format, chosen by `_READERS`. A reader yields an `Example`, or the `DataError` that stands in its place,
so that one run tells how many places need mending; it raises where the rest of a source cannot be made out.
"""

import itertools
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from mmt_cli.captioning.sources import natural_key
from mmt_cli.errors import DataError
from mmt_cli.inputs.archive import tar_members
from mmt_cli.inputs.image import IMAGE_SUFFIXES
from mmt_cli.training.records import (
    is_url,
    json_object,
    locate,
    os_errors_named,
    printable,
    record_captions,
    text_captions,
)

MAX_BRACE_NAMES = 100_000
TEXT_SUFFIXES = (".txt", ".txt.gz")  # of sentences without images

T = TypeVar("T")

_BRACES = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_Parts = dict[str, tarfile.TarInfo]  # members of a tar with one key: "image", ".json", ".txt"


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
        """The encoded image; DataError where it is gone or its archive is no longer the one that was indexed."""
        with os_errors_named(self.key), self.file.open("rb") as file:
            unchanged = self.modified_ns in (None, os.fstat(file.fileno()).st_mtime_ns)
            file.seek(self.offset)
            data = file.read() if self.size is None else file.read(self.size)
        if unchanged and self.size in (None, len(data)):
            return data
        raise DataError(f"{printable(self.file)} changed since it was indexed; leave it as it is and start again")


def open_dataset(sources: Sequence[str | os.PathLike[str]]) -> list[Example]:
    """Index WebDataset `.tar` shards, `.jsonl` files and folders of images with `.txt` sidecars, in the order named.

    A range in braces stands for several sources, see `expand_braces`. All problems together raise one DataError that
    states the first and counts the others.
    """
    examples = gather(itertools.chain.from_iterable(read_source(name) for name in expand_all(sources)))
    if not examples:
        raise DataError("no data set named; name a .tar shard, a .jsonl file or a folder of images")
    return examples


def gather(items: Iterable[T | DataError]) -> list[T]:
    """What was read; the problems among it raise one DataError that states the first and counts the others."""
    found: list[T] = []
    problems: list[DataError] = []
    for item in items:
        if isinstance(item, DataError):
            problems.append(item)
        else:
            found.append(item)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    return found


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


def read_source(source: str) -> Iterator[Example | DataError]:
    """What a source holds; what stops its reader comes last."""
    found = False
    try:
        for item in _reader(source)(Path(source)):
            found = True
            yield item
    except DataError as error:
        yield error
    else:
        if not found:
            yield DataError(f"no images in {printable(source)}; name a data set that has some")


def _reader(source: str) -> "_Reader":
    if is_url(source):
        raise DataError(f"{printable(source)} is a URL; download it and name the file")
    path = Path(source)
    with os_errors_named(source):
        if path.is_dir():
            return _read_folder
        if path.is_file() and path.suffix.lower() in _READERS:
            return _READERS[path.suffix.lower()]
        path.stat()
    if source.lower().endswith(TEXT_SUFFIXES):
        raise DataError(f"{printable(source)} holds text without images; learn from it with --objective language")
    known = ", ".join(_READERS)
    raise DataError(f"{printable(source)} is not a data set that can be read; name a folder of images or a {known}")


def _read_folder(folder: Path) -> Iterator[Example | DataError]:
    """Images in natural order; beside each a `.txt` file of the same name with a caption a line."""
    root = folder.resolve()
    with os_errors_named(folder):
        names = {entry.name for entry in root.iterdir()}
    for name in sorted(names, key=natural_key):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield _attempt(_folder_example, folder, root, name, names)


def _folder_example(folder: Path, root: Path, name: str, names: set[str]) -> Example:
    sidecar = Path(name).with_suffix(".txt").name
    if sidecar not in names:
        raise DataError(f"{printable(folder / name)} has no captions; write them to {printable(sidecar)} beside it")
    text = locate(root, sidecar, printable(folder))
    with os_errors_named(folder / sidecar):
        captions = text_captions(text.read_bytes(), printable(folder / sidecar))
    return Example(key=str(folder / name), captions=captions, file=locate(root, name, printable(folder)))


def _read_jsonl(path: Path) -> Iterator[Example | DataError]:
    """Lines `{"image": PATH, "caption": TEXT}` or `{"image": PATH, "captions": [TEXT, …]}`; blank lines are skipped."""
    root = path.parent.resolve()
    with os_errors_named(path), path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _attempt(_jsonl_example, path, root, line, f"{printable(path)} line {number}")


def _jsonl_example(path: Path, root: Path, line: bytes, where: str) -> Example:
    record = json_object(line, where)
    image = record.get("image")
    if not isinstance(image, str) or not image:
        raise DataError(f'{where}: "image" is missing or not a path; give {{"image": PATH, "caption": TEXT}}')
    file = locate(root, image, where)
    return Example(key=str(path.parent / image), captions=record_captions(record, where), file=file)


def _read_tar(path: Path) -> Iterator[Example | DataError]:
    """WebDataset shard: `KEY.jpg` (or another image suffix) with `KEY.json` or `KEY.txt`; other members are skipped."""
    with os_errors_named(path), path.open("rb") as file:
        groups: dict[str, _Parts] = {}
        for member in _tar_members(file, path):
            problem = _add_member(member, groups, path)
            if problem:
                yield problem
        for parts in groups.values():
            if "image" in parts:
                yield _attempt(_tar_example, file, path, parts)


def _tar_members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar_members(file)
    except tarfile.ReadError as error:
        raise DataError(
            f"{printable(path)} is not a whole uncompressed tar ({printable(str(error))}); copy or make it again"
        ) from None


def _add_member(member: tarfile.TarInfo, groups: dict[str, _Parts], path: Path) -> DataError | None:
    """Put a member to its key's group, or say why it cannot be there."""
    name = PurePosixPath(member.name)
    where = printable(path / name.relative_to(name.anchor))
    if name.is_absolute() or ".." in name.parts:
        return DataError(f"{where} leaves the archive (member {printable(member.name)}); make the tar with plain names")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return DataError(f"{where} is not a plain file (tar type {member.type!r}); store the file itself")
    part = "image" if name.suffix.lower() in IMAGE_SUFFIXES else name.suffix.lower()
    if part in ("image", ".json", ".txt"):
        parts = groups.setdefault(str(name.with_suffix("")), {})
        if part in parts:
            return DataError(f"{where} has the key of {printable(parts[part].name)}; give each image a key of its own")
        parts[part] = member
    return None


def _tar_example(file: BinaryIO, path: Path, parts: _Parts) -> Example:
    image = parts["image"]
    return Example(
        key=str(path / image.name),
        captions=_tar_captions(file, path, parts),
        file=path.absolute(),
        offset=image.offset_data,
        size=image.size,
        modified_ns=os.fstat(file.fileno()).st_mtime_ns,
    )


def _tar_captions(file: BinaryIO, path: Path, parts: _Parts) -> tuple[str, ...]:
    texts = {}
    for part in parts.keys() & {".json", ".txt"}:
        file.seek(parts[part].offset_data)
        texts[part] = file.read(parts[part].size), printable(path / parts[part].name)
    if ".json" in texts:
        record = json_object(*texts[".json"])
        # img2dataset writes both, and the JSON need not hold a caption.
        if not record.keys().isdisjoint(("caption", "captions")):
            return record_captions(record, texts[".json"][1])
    if ".txt" in texts:
        return text_captions(*texts[".txt"])
    raise DataError(f"{printable(path / parts['image'].name)} has no captions; give its key a .json or .txt with some")


def _attempt(make: Callable[..., Example], *args: object) -> Example | DataError:
    try:
        return make(*args)
    except DataError as error:
        return error


_Reader = Callable[[Path], Iterator[Example | DataError]]
_READERS: dict[str, _Reader] = {".tar": _read_tar, ".jsonl": _read_jsonl}  # by suffix; a folder has `_read_folder`
