"""How a run of `mmt` ended: its exit code, and the one line that says why."""

import difflib
import errno
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer

from mmt_cli.cli import console
from mmt_cli.errors import MmtError, ToldElsewhereError

SIGPIPE_CODE, SIGTERM_CODE, INTERRUPT_CODE = 141, 143, 130
# typer.BadParameter -> its UsageError -> the base of all errors of the parser, which typer does not export.
_ParserError: Any = typer.BadParameter.__mro__[2]
# What a write to stdout can meet; the system names no file in these, in all others it does.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An exit code and the line for stderr, None for a quiet end."""

    code: int
    line: str | None = None


class EndedBySignal(BaseException):
    """A signal ended the run, and there is more to say than that."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def describe(error: BaseException) -> Outcome:
    """Return the exit code and the line that belong to whatever ended the run."""
    match error:
        case MmtError():
            return Outcome(code=error.exit_code, line=f"mmt: error: {error}")
        case ToldElsewhereError():
            return Outcome(code=describe(error.reason).code)
        case EndedBySignal():
            terminated = error.number == signal.SIGTERM
            code, what = (SIGTERM_CODE, "terminated") if terminated else (INTERRUPT_CODE, "interrupted")
            return Outcome(code=code, line=f"mmt: {what}; {error}")
        case KeyboardInterrupt():
            return Outcome(code=INTERRUPT_CODE, line="; ".join(["mmt: interrupted", *map(str, error.args)]))
        case SystemExit(code=code) if code == SIGTERM_CODE:
            return Outcome(code=SIGTERM_CODE, line="mmt: terminated")
        case BrokenPipeError():
            return Outcome(code=SIGPIPE_CODE)
        case OSError(filename=None, errno=number) if number in _WRITE_ERRORS:
            why = error.strerror or type(error).__name__
            return Outcome(code=2, line=f"mmt: error: cannot write the output ({why}); send it somewhere else")
        case _ if isinstance(error, _ParserError):
            return Outcome(code=2, line=f"mmt: error: {_parser_line(error)}")
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    return Outcome(
        code=1, line=f"mmt: error: a bug in mmt ({what}); run it again with --debug and report what it prints"
    )


def _parser_line(error: Any) -> str:
    """Turn an error of the parser into `WHAT (BOTH VALUES); WHAT TO DO`."""
    advice = f"see '{error.ctx.command_path if error.ctx else 'mmt'} --help'"
    if hasattr(error, "possibilities"):
        # Without the dashes, which all options share and which make any two of them look alike.
        known = [option.lstrip("-") for option in error.possibilities or ()]
        near = difflib.get_close_matches(error.option_name.lstrip("-"), known, n=1)
        guess = f", did you mean --{near[0]}?" if near else ""
        return f"unknown option ({error.option_name}{guess}); {advice}"
    what = " ".join(error.format_message().split()).rstrip(".")
    return f"{what[:1].lower()}{what[1:]}; {advice}"


def wants_debug(arguments: Sequence[str]) -> bool:
    """Say whether `--debug` is given, before or after the command.

    Looked up in the raw arguments, so that it holds for errors of the parser too.
    """
    return "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]


def raise_on_sigterm() -> None:
    """Let SIGTERM unwind the run as Ctrl-C does, so that files are closed and the terminal is restored."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(SIGTERM_CODE)

    signal.signal(signal.SIGTERM, stop)


def finish(ended: Outcome) -> int:
    """Print the line, make sure that the interpreter's own last flush of stdout is quiet, and return the exit code."""
    # A second Ctrl-C while the process winds down ends it at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        console.flush()
    except OSError:
        console.discard(sys.stdout)
    if ended.line:
        console.note(ended.line)
    return ended.code
