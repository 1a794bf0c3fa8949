"""What the output file of an earlier run holds: how it was made, what is done, where the last whole item ends."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from mmt_cli.captioning.whole_files import replace_file, sync_folder
from mmt_cli.captioning.writers import Layout
from mmt_cli.errors import UsageError, shown
from mmt_cli.inputs.encoding import to_bytes

SETTINGS_SUFFIX = ".mmt"

_FORMAT_VERSION = 1
_MAX_SETTINGS_BYTES = 1 << 20
_OTHERWISE = "name another --output, or leave --resume out to start over"
_ESCAPE = re.compile(rb"\\([\\tnr])")
_ESCAPED = {b"\\": b"\\", b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_CSV_FIELD = re.compile(rb'("[^"]*(?:""[^"]*)*"|[^",\r\n]*)(,|\r\n)')


class DoneItems:
    """Which items are done already, and how often: an item may be named twice.

    Keeps 60 bits of a hash of each path, with which the odds that two of a million are alike are 1 to two million.
    """

    def __init__(self) -> None:
        self._left: dict[int, int] = {}

    def add(self, path: bytes) -> None:
        """Count one occurrence of an item."""
        key = _key(path)
        self._left[key] = self._left.get(key, 0) + 1

    def take(self, path: str) -> bool:
        """Say whether this occurrence of an item is done, and count it off."""
        key = _key(to_bytes(path))
        left = self._left.pop(key, 0)
        if left > 1:
            self._left[key] = left - 1
        return left > 0


def _key(path: bytes) -> int:
    # Python keeps 60 bits in two digits; the 64 of the hash would take three.
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big") >> 4


def scan(file: BinaryIO, name: str, layout: Layout) -> tuple[DoneItems, int]:
    """Read the records of an earlier run from a file's start; return what is done, and the byte it ends at.

    What comes after that is of no use: a record that was torn when the run was killed, or an item without all of its
    captions. Where captions stand alone, the one item is the path "".

    Raises:
        UsageError: a record in the middle is none of this layout. `name` is the file's.
    """
    if layout.bare:
        return _scan_bare(file, layout)
    header = to_bytes(layout.header())
    records = _csv_records(file) if layout.kind == "csv" else iter(file)
    done, end, path, count = DoneItems(), 0, b"", 0
    if header and (first := next(records, b"")) != header:
        return done, _torn_at(0, first, 1, file, name)
    position = end = len(header)
    for number, raw in enumerate(records, 2 if header else 1):
        entry = _parse(raw, layout)
        if entry is None or (count > 0 and (entry.failed or entry.path != path)):
            return done, _torn_at(end, raw, number, file, name)
        position, path, count = position + len(raw), entry.path, count + 1
        if entry.failed or count == layout.captions_per_item:
            done.add(path)
            end, count = position, 0
    return done, end


def _torn_at(end: int, raw: bytes, number: int, file: BinaryIO, name: str) -> int:
    """Return `end` if what comes there can be the rest of a killed run: the last record, or what a power cut left.

    Pages of a file that never reached the disk read as zeros, and others may follow that did.
    """
    if b"\0" in raw or not file.read(1):
        return end
    raise UsageError(f"{name} has something else than a record in it (record {number}); mend it, or {_OTHERWISE}")


def _scan_bare(file: BinaryIO, layout: Layout) -> tuple[DoneItems, int]:
    done, text = DoneItems(), file.read()
    if not text.endswith(b"\n") or text.count(b"\n") < layout.captions_per_item:
        return done, 0
    done.add(b"")
    return done, len(text)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    path: bytes
    failed: bool = False  # one such record stands for all captions of its item


def _parse(raw: bytes, layout: Layout) -> _Entry | None:
    """Return what a record says, None if it is none."""
    if layout.kind == "jsonl":
        return _parse_jsonl(raw)
    return _parse_csv(raw, layout) if layout.kind == "csv" else _parse_tsv(raw)


def _parse_jsonl(raw: bytes) -> _Entry | None:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not raw.endswith(b"\n") or not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        return None
    return _Entry(path=to_bytes(fields["path"]), failed=fields.get("error") is not None)


def _parse_tsv(raw: bytes) -> _Entry | None:
    path, *rest = raw.split(b"\t")
    if not raw.endswith(b"\n") or len(rest) != 1:
        return None
    return _Entry(path=_ESCAPE.sub(lambda found: _ESCAPED[found[1]], path))


def _parse_csv(raw: bytes, layout: Layout) -> _Entry | None:
    fields, position = [], 0
    while found := _CSV_FIELD.match(raw, position):
        fields.append(found[1][1:-1].replace(b'""', b'"') if found[1].startswith(b'"') else found[1])
        position = found.end()
    if position != len(raw) or not raw.endswith(b"\r\n") or len(fields) != len(layout.columns):
        return None
    return _Entry(path=fields[0], failed=bool(fields[layout.columns.index("error")]))


def _csv_records(file: Iterable[bytes]) -> Iterator[bytes]:
    """Put lines that end inside quotes together; the last may be torn."""
    lines: list[bytes] = []
    quotes = 0
    for line in file:
        lines.append(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            yield b"".join(lines)
            lines, quotes = [], 0
    if lines:
        yield b"".join(lines)


def read_settings(output: str) -> dict[str, Any]:
    """Return how the output file of an earlier run was made.

    Raises:
        UsageError: that is not known, or not for certain.
    """
    path = output + SETTINGS_SUFFIX
    try:
        data = _read_start(path)
    except OSError as error:
        raise UsageError(f"how {output} was made is not known ({path}: {error.strerror}); {_OTHERWISE}") from None
    try:
        found = json.loads(data)
        version, settings = found["format_version"], found["settings"]
    except (ValueError, RecursionError, TypeError, KeyError):
        version = settings = None
    if version == _FORMAT_VERSION and isinstance(settings, dict):
        return settings
    newer = isinstance(version, int) and version != _FORMAT_VERSION
    what = f"version {shown(version)}, expected {_FORMAT_VERSION}" if newer else "it is damaged"
    raise UsageError(f"how {output} was made cannot be read ({path}: {what}); {_OTHERWISE}")


def _read_start(path: str) -> bytes:
    """Return as much of a file as ours can have: a device may never end, a FIFO may never begin."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(_MAX_SETTINGS_BYTES)


def write_settings(output: str, settings: Mapping[str, Any]) -> None:
    """Write down how an output file is made; on the disk, whole, when this returns.

    Raises:
        OSError: it cannot be written.
    """
    content = {"format_version": _FORMAT_VERSION, "settings": dict(settings)}
    path = output + SETTINGS_SUFFIX
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode("ascii"))
    sync_folder(path)


def check_settings(output: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make sure that a file is gone on with as it was begun.

    Raises:
        UsageError: a setting is another; the first such is named with both values.
    """
    for name in dict.fromkeys([*now, *before]):
        # Compared as JSON has them: there a tuple is a list, NaN is itself, and None is as good as nothing.
        values = (before.get(name), now.get(name))
        if len({json.dumps(value) for value in values}) > 1:
            what = f"{shown(values[0])} then, {shown(values[1])} now"
            raise UsageError(f"{output} was made with another {name} ({what}); give the same again, {_OTHERWISE}")
