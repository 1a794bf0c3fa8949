"""WebDataset shards: tars with `KEY.jpg` (or another image suffix) and `KEY.json` or `KEY.txt`.

Other members are skipped. The tar is read through once; images are read from where they lie in it.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from mmt_cli.errors import DataError
from mmt_cli.inputs.archive import tar_members
from mmt_cli.inputs.image import IMAGE_SUFFIXES
from mmt_cli.training.examples import Example, Packed
from mmt_cli.training.formats.reading import Reading
from mmt_cli.training.records import json_object, os_errors_named, printable, record_captions, text_captions


class _Member(NamedTuple):
    name: str
    offset: int  # bytes
    size: int  # bytes


_Parts = dict[str, _Member]  # members with one key: "image", ".json", ".txt"


def read_shard(path: Path, reading: Reading) -> Packed:
    """Index the images of a tar in its order."""
    found = Packed()
    with os_errors_named(path), path.open("rb") as file:
        groups: dict[str, _Parts] = {}
        for member in _members(file, path):
            try:
                _add(member, groups, path)
            except DataError as problem:
                reading.findings.refuse(problem)
        for parts in groups.values():
            if "image" not in parts:
                continue
            try:
                example = _example(file, path, parts)
            except DataError as problem:
                reading.findings.refuse(problem)
            else:
                found.append(example)
                reading.findings.take(len(example.captions))
    return found


def _members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar_members(file)
    except tarfile.ReadError as error:
        raise DataError(
            f"{printable(path)} is not a whole uncompressed tar ({printable(str(error))}); copy or make it again"
        ) from None


def _add(member: tarfile.TarInfo, groups: dict[str, _Parts], path: Path) -> None:
    """Put a member to its key's group; DataError where it cannot be there."""
    name = PurePosixPath(member.name)
    where = printable(path / name.relative_to(name.anchor))
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{where} leaves the archive (member {printable(member.name)}); make the tar with plain names")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{where} is not a plain file (tar type {member.type!r}); store the file itself")
    part = "image" if name.suffix.lower() in IMAGE_SUFFIXES else name.suffix.lower()
    if part in ("image", ".json", ".txt"):
        parts = groups.setdefault(str(name.with_suffix("")), {})
        if part in parts:
            raise DataError(f"{where} has the key of {printable(parts[part].name)}; give each image a key of its own")
        parts[part] = _Member(member.name, member.offset_data, member.size)


def _example(file: BinaryIO, path: Path, parts: _Parts) -> Example:
    image = parts["image"]
    return Example(
        key=str(path / image.name),
        captions=_captions(file, path, parts),
        file=path.absolute(),
        offset=image.offset,
        size=image.size,
        modified_ns=os.fstat(file.fileno()).st_mtime_ns,
    )


def _captions(file: BinaryIO, path: Path, parts: _Parts) -> tuple[str, ...]:
    texts = {}
    for part in parts.keys() & {".json", ".txt"}:
        file.seek(parts[part].offset)
        texts[part] = file.read(parts[part].size), printable(path / parts[part].name)
    if ".json" in texts:
        record = json_object(*texts[".json"])
        # img2dataset writes both, and the JSON need not hold a caption.
        if not record.keys().isdisjoint(("caption", "captions")):
            return record_captions(record, texts[".json"][1])
    if ".txt" in texts:
        return text_captions(*texts[".txt"])
    raise DataError(f"{printable(path / parts['image'].name)} has no captions; give its key a .json or .txt with some")
