"""What the text of a caption data set must be: UTF-8, JSON objects, captions worth learning, paths inside its folder.

Every function raises DataError for text that is not so, in one line that begins with `where` (file and line, already
`printable`), whatever the text holds.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmt_cli.errors import DataError

MAX_CAPTION_CHARACTERS = 100_000

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LINE_END = re.compile(r"[\r\n]+")
_SHOWN_CHARACTERS = 200


def printable(text: str | os.PathLike[str]) -> str:
    """For a message of one line: control characters escaped, the middle of a long text left out."""
    text = os.fspath(text)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[: _SHOWN_CHARACTERS // 2]}…{text[-_SHOWN_CHARACTERS // 2 :]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


@contextmanager
def os_errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the operating system refuses becomes a DataError about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"cannot read {printable(path)} ({reason}); check its name and permissions") from None


def is_url(name: str) -> bool:
    """Whether `name` begins with a scheme, such as https://."""
    return _URL.match(name) is not None


def locate(root: Path, name: str, where: str) -> Path:
    """The regular file `name` below the data folder `root` (a resolved path), links followed; it is not opened."""
    if is_url(name):
        raise DataError(f"{where} names {printable(name)}, a URL; download it and give its path")
    outside = DataError(f"{where} names {printable(name)}, outside the data folder; move it there and give its path")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise outside
    try:
        path = (root / name).resolve(strict=True)
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links; ValueError: a zero byte
        path, is_file = root, False
    if not path.is_relative_to(root):
        raise outside
    if not is_file:
        raise DataError(f"{where} names {printable(name)}, which is not a file there; restore it or remove the entry")
    return path


def json_object(data: bytes, where: str) -> dict[str, object]:
    """The JSON object that `data` holds."""
    value = json_value(data, where)
    if not isinstance(value, dict):
        raise DataError(f'{where} is not a JSON object but a {type(value).__name__}; write {{"caption": TEXT}}')
    return value


def json_value(data: bytes, where: str) -> object:
    """What `data` holds in JSON."""
    try:
        value: object = json.loads(decoded(data, where))
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "out of bounds"
        raise DataError(f"{where} is not valid JSON ({reason}); mend or remove it") from None
    return value


def record_captions(record: dict[str, object], where: str) -> tuple[str, ...]:
    """The cleaned captions of an object with either "caption" (a string) or "captions" (a list of them)."""
    if "caption" in record and "captions" in record:
        raise DataError(f'{where} has both "caption" and "captions"; keep one')
    captions = [record["caption"]] if "caption" in record else record.get("captions", [])
    if not isinstance(captions, list):
        raise DataError(f'{where} has "captions" that are not a list but a {type(captions).__name__}; write [TEXT]')
    return cleaned(captions, where)


def text_captions(data: bytes, where: str) -> tuple[str, ...]:
    """The cleaned captions of a plain text, one a line; blank lines are skipped."""
    return cleaned([line for line in _LINE_END.split(decoded(data, where)) if line.strip()], where)


def sentence(line: bytes, where: str) -> str | None:
    """The cleaned text of one line, None where it is blank."""
    text = decoded(line, where)
    return _clean_caption(text, where) if text.strip() else None


def decoded(data: bytes, where: str) -> str:
    """The text that `data` holds in UTF-8, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}: {error.reason}); convert it") from None


def cleaned(captions: Sequence[object], where: str) -> tuple[str, ...]:
    """Captions stripped, each run of white space one space."""
    if not captions:
        raise DataError(f"{where} has no captions; add one or remove the image")
    return tuple(_clean_caption(caption, where) for caption in captions)


def _clean_caption(caption: object, where: str) -> str:
    """Stripped, each run of white space one space."""
    if not isinstance(caption, str):
        raise DataError(f"{where} has a caption that is not a string but a {type(caption).__name__}; write text")
    caption = " ".join(caption.split())
    if not caption:
        raise DataError(f"{where} has an empty caption; write one or remove it")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        size = f"{len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}"
        raise DataError(f"{where} has a caption of {size}; shorten it")
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can spell half a character, \ud83d, which no UTF-8 text can hold
        raise DataError(f"{where} has a caption with half a surrogate pair; write the whole character") from None
    return caption
