"""Errors a user can cause, each with the exit code the command line ends with.

Messages are one line, `WHAT (BOTH VALUES); WHAT TO DO`. A bug of our own is any other exception.
"""

import reprlib
from typing import Literal

ImageErrorKind = Literal["missing", "unreadable", "unsupported", "truncated", "too_large", "out_of_memory"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shown(value: object) -> str:
    """Return a value from outside as a message can hold it: its repr on one line, cut where it is long or deep."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return f"a huge {type(value).__name__}"


class MmtError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = 1


class UsageError(MmtError):
    """Wrong usage: a bad value, an impossible combination, nothing found to do."""

    exit_code = 2


class ConfigError(UsageError):
    """A model configuration that cannot be built; names the values that do not fit."""


class ImageError(MmtError):
    """One image could not be read; the others go on."""

    exit_code = 3

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ImageErrorKind = kind


class SlowerError(MmtError):
    """A benchmark is slower than its baseline by more than `--fail-above` allows."""

    exit_code = 3


class TooManyFailuresError(MmtError):
    """More items failed than `--max-errors` allows."""

    exit_code = 4


class OutputError(MmtError):
    """A result file cannot be written."""

    exit_code = 2


class ModelError(MmtError):
    """A model, checkpoint or tokenizer is missing or cannot be loaded."""

    exit_code = 5


class DataError(MmtError):
    """A training or validation data set is missing or cannot be read."""

    exit_code = 5


class DivergedError(MmtError):
    """Training met a loss or gradient that is NaN or infinite."""

    exit_code = 6


class PeerLostError(MmtError):
    """Another process of a training run ended without a word."""


class ToldElsewhereError(Exception):
    """This process of several ends too; `reason` ended it, or ended another one, which tells the user."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch or Python ran out of memory; by name, since this module needs no torch.

    A GPU raises `torch.OutOfMemoryError`, the CPU's allocator a plain RuntimeError with these words.
    """
    words = ("can't allocate memory", "not enough memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(word in str(error) for word in words)
    )
