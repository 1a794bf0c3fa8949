"""Whatever Pillow raises on a bad file, told as what is wrong with it and what to do."""

import contextlib
import io
import re
import struct
from collections.abc import Iterator
from typing import IO

from PIL import Image

from mmt_cli.errors import ImageError, ImageErrorKind

# Pillow's exceptions carry their cause in the text alone.
_KIND_BY_TEXT: tuple[tuple[re.Pattern[str], ImageErrorKind], ...] = (
    (re.compile("out of memory", re.IGNORECASE), "out_of_memory"),
    (re.compile("truncat|no more images|unexpected end|insufficient", re.IGNORECASE), "truncated"),
    (re.compile("unsupported|not supported|not installed|unknown pixel mode", re.IGNORECASE), "unsupported"),
)
_MESSAGES: dict[ImageErrorKind, str] = {
    "truncated": "is cut off ({}); get a whole copy of it",
    "unsupported": "holds a kind of image that cannot be read ({}); convert it to PNG or JPEG",
    "unreadable": "cannot be read as an image ({}); get a sound copy of it or convert it to PNG or JPEG",
    "out_of_memory": "needs more memory than there is ({}); make it smaller or lower --max-pixels",
    "too_large": "has too many pixels ({}); make it smaller",
}


@contextlib.contextmanager
def as_image_errors(name: str, file: IO[bytes] | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file (OSError, SyntaxError, struct.error and many more) into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        kind = _kind_of(error)
        if kind == "unreadable" and file is not None and _is_shorter_than_declared(file):
            kind = "truncated"
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(kind, f"{name} {_MESSAGES[kind].format(detail)}") from error


def _kind_of(error: Exception) -> ImageErrorKind:
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, Image.DecompressionBombError):
        return "too_large"
    for pattern, kind in _KIND_BY_TEXT:
        if pattern.search(str(error)):
            return kind
    # Reading past the end of the file; Pillow's constructors wrap these in a SyntaxError.
    past_end = (EOFError, struct.error, IndexError)
    return "truncated" if isinstance(error, past_end) or isinstance(error.__cause__, past_end) else "unreadable"


def _is_shorter_than_declared(file: IO[bytes]) -> bool:
    """Whether a WebP or TIFF ends before the place its header points to; their decoders do not say so."""
    with contextlib.suppress(OSError, ValueError):
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(8)
        if head.startswith(b"RIFF"):
            return length < 8 + int.from_bytes(head[4:8], "little")
        if head.startswith((b"II*\0", b"MM\0*")):
            return length < 2 + int.from_bytes(head[4:8], "little" if head.startswith(b"II") else "big")
    return False
