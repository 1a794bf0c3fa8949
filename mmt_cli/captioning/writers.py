"""One record for each image, and the lines it becomes: text, TSV or JSONL."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mmt_cli.errors import ImageError

Format = Literal["text", "tsv", "jsonl"]
Formatter = Callable[["Record"], str]

_FIELD_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one image.

    Attributes:
        path: the image, as the user named it.
        caption: the text; None if the image failed, as are the next three.
        prompt: what the caption was asked to start with.
        tokens: ids generated after the prompt, up to and including the end token when there was one.
        logprob: sum of their natural-log probabilities.
        finish_reason: `stop` or `length`.
        ms: wall milliseconds of the image's batch, divided by the images in it.
        model: `name@` and 12 hex digits of the sha256 of the weights.
        error: why the image failed, None if it did not.
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


def formatter(kind: Format, *, single: bool = False) -> Formatter:
    """Return the function that makes a record's line, newline included; an empty string is nothing to write.

    Args:
        kind: `text`: `path<TAB>caption`, nothing for a failed image. `tsv`: the same without a header line, and with
            an empty caption for a failed image, so that line N is image N. `jsonl`: one ASCII object a line.
        single: exactly one image was named, so `text` is its caption alone, as it is.
    """
    if kind == "jsonl":
        return jsonl_line
    if kind == "tsv":
        return tsv_line
    return bare_line if single else text_line


def bare_line(record: Record) -> str:
    """Return the caption alone."""
    return "" if record.caption is None else record.caption + "\n"


def text_line(record: Record) -> str:
    """Return `path<TAB>caption`, or nothing for a failed image."""
    return "" if record.caption is None else tsv_line(record)


def tsv_line(record: Record) -> str:
    r"""Return `path<TAB>caption`; tab, newline, carriage return and backslash become `\t`, `\n`, `\r` and `\\`."""
    fields = (record.path, record.caption or "")
    return "\t".join(field.translate(_FIELD_ESCAPES) for field in fields) + "\n"


def jsonl_line(record: Record) -> str:
    r"""Return one JSON object in ASCII with its keys in a fixed order; bytes in no encoding become `\udcXX`."""
    error = record.error and {"kind": record.error.kind, "message": str(record.error)}
    finite = record.logprob is not None and math.isfinite(record.logprob)
    fields = {
        "path": record.path,
        "caption": record.caption,
        "prompt": record.prompt,
        "tokens": record.tokens,
        "logprob": record.logprob if finite else None,  # JSON has no NaN and no infinity
        "finish_reason": record.finish_reason,
        "ms": round(record.ms, 3),
        "model": record.model,
        "error": error,
    }
    return json.dumps(fields, allow_nan=False) + "\n"
