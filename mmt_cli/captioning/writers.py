"""One record for each caption, and what it becomes: text, TSV, JSONL or CSV."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mmt_cli.errors import ImageError

Format = Literal["text", "tsv", "jsonl", "csv"]
Formatter = Callable[["Record"], str]

CSV_END = "\r\n"

_COLUMNS = ("path", "caption", "prompt", "tokens", "logprob", "finish_reason", "ms", "model", "error")
_FIELD_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one image, or one of its captions where several were asked for.

    Attributes:
        path: the image, as the user named it.
        caption: the text; None if the image failed, as are the next three.
        prompt: what the caption was asked to start with.
        tokens: ids generated after the prompt, up to and including the end token when there was one.
        logprob: sum of their natural-log probabilities.
        finish_reason: `stop`, `length` or `loop`.
        ms: wall milliseconds of the image's batch, divided by the images in it.
        model: `name@` and 12 hex digits of the sha256 of the weights.
        error: why the image failed, None if it did not.
        rank: place among the image's captions, 1 the best; None if one was asked for, or if the image failed.
        image_gain: bits by which the image makes the caption likelier; None if nobody asked, or if the image failed.
    """

    path: str
    caption: str | None = None
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    logprob: float | None = None
    finish_reason: str | None = None
    ms: float
    model: str
    error: ImageError | None = None
    rank: int | None = None
    image_gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the records of one run look.

    Attributes:
        kind: `text`: `path<TAB>caption`, nothing for a failed image. `tsv`: the same without a header line, and with
            an empty caption for each caption that a failed image was to have, so that line N is caption N. `jsonl`:
            one ASCII object a line. `csv`: a header line and the same fields, by RFC 4180.
        single: exactly one image was named, so `text` is its caption alone, as it is.
        captions_per_item: how many were asked for; with more than one, records have a `rank`.
        grounded: whether records have an `image_gain`.
    """

    kind: Format
    single: bool = False
    captions_per_item: int = 1
    grounded: bool = False

    @property
    def bare(self) -> bool:
        """Whether captions stand alone, without the path of their image."""
        return self.kind == "text" and self.single

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a record in `jsonl` and `csv`, in order."""
        ranked = ("rank",) if self.captions_per_item > 1 else ()
        return _COLUMNS + ranked + (("image_gain",) if self.grounded else ())

    def header(self) -> str:
        """Return what stands before the first record."""
        return ",".join(self.columns) + CSV_END if self.kind == "csv" else ""

    def lines(self, record: Record) -> str:
        """Return a record as it is written, newline included; an empty string is nothing to write."""
        match self.kind:
            case "jsonl":
                return jsonl_line(record, self.columns)
            case "csv":
                return csv_line(record, self.columns)
            case "tsv":
                return tsv_line(record) * (1 if record.error is None else self.captions_per_item)
            case "text" if record.caption is None:
                return ""
        return f"{record.caption}\n" if self.single else tsv_line(record)


def formatter(kind: Format, *, single: bool = False, captions_per_item: int = 1, grounded: bool = False) -> Formatter:
    """Return the function that writes a record out, see `Layout`."""
    return Layout(kind=kind, single=single, captions_per_item=captions_per_item, grounded=grounded).lines


def tsv_line(record: Record) -> str:
    r"""Return `path<TAB>caption`; tab, newline, carriage return and backslash become `\t`, `\n`, `\r` and `\\`."""
    return f"{escape_field(record.path)}\t{escape_field(record.caption or '')}\n"


def escape_field(text: str) -> str:
    r"""Return text as a field of a line: tab, newline, carriage return and backslash become `\t`, `\n`, `\r`, `\\`."""
    return text.translate(_FIELD_ESCAPES)


def jsonl_line(record: Record, columns: tuple[str, ...] = _COLUMNS) -> str:
    r"""Return one JSON object in ASCII with its keys in a fixed order; bytes in no encoding become `\udcXX`."""
    fields = _fields(record)
    return json.dumps({column: fields[column] for column in columns}, allow_nan=False) + "\n"


def csv_line(record: Record, columns: tuple[str, ...] = _COLUMNS) -> str:
    """Return one record by RFC 4180: tokens with spaces between them, an error as `kind: message`, None as nothing."""
    fields = _fields(record)
    fields["tokens"] = " ".join(map(str, record.tokens or ()))
    fields["error"] = record.error and f"{record.error.kind}: {record.error}"
    return csv_row(fields[column] for column in columns)


def csv_row(values: Iterable[object]) -> str:
    """Return one row by RFC 4180, None as nothing."""
    return ",".join(map(_quoted, values)) + CSV_END


def _fields(record: Record) -> dict[str, Any]:
    return {
        "path": record.path,
        "caption": record.caption,
        "prompt": record.prompt,
        "tokens": record.tokens,
        "logprob": _finite(record.logprob),
        "finish_reason": record.finish_reason,
        "ms": round(record.ms, 3),
        "model": record.model,
        "error": record.error and {"kind": record.error.kind, "message": str(record.error)},
        "rank": record.rank,
        "image_gain": _finite(record.image_gain),
    }


def _finite(number: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return number if number is not None and math.isfinite(number) else None


def _quoted(value: object) -> str:
    text = "" if value is None else str(value)
    if not any(letter in text for letter in '",\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'
