"""What goes to the terminal: results on stdout, everything else on stderr."""

import contextlib
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Self, TextIO

from mmt_cli.errors import UsageError
from mmt_cli.inputs.encoding import KEEP_BYTES
from mmt_cli.inputs.printable import printable as printable  # the other commands take it from here

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mmt_cli.checkpoint.reference import HubOptions


def prepare_streams() -> None:
    """Make stdout carry every file name, and fill closed standard streams.

    A closed descriptor 0, 1 or 2 would be handed to the next file that is opened, and what a library writes to
    stdout or stderr would land in it.

    Raises:
        UsageError: stdout is closed, so the results could go nowhere.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 — open for the life of the process
    if sys.stdout is None:
        raise UsageError("stdout is closed (the results go there); redirect it to a file, a pipe or /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=KEEP_BYTES)


def files_of_stdout() -> list[tuple[int, int]]:
    """Return device and inode of the file that stdout goes to; none where it goes elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(status.st_mode):
            return [(status.st_dev, status.st_ino)]
    return []


def use_colour(stream: TextIO | None) -> bool:
    """Say whether to style what goes to `stream`: NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def emit(text: str) -> None:
    """Write results to stdout at once and as they are; on a terminal all but tabs and newlines is made `printable`.

    Raises:
        OSError: stdout takes no more: a full disk, a closed pipe.
    """
    sys.stdout.write(printable(text.replace("\r\n", "\n"), keep="\t\n") if sys.stdout.isatty() else text)
    flush()


def flush() -> None:
    """Send written results on their way.

    Raises:
        OSError: stdout takes no more: a full disk, a closed pipe.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def note(line: str) -> None:
    """Write one line for people to stderr; a stderr that takes no more does not end the run."""
    try:
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Point a stream that takes no more at the null device.

    What is still buffered would fail again when the interpreter flushes it at its end, which then exits with 120.
    """
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Progress:
    """A running count of images on stderr, where that is a terminal and the results go elsewhere.

    Where both go to the terminal the results themselves show how far the run is, and a bar would write over them.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._bar: Bar | None = None
        if not quiet and sys.stderr.isatty() and not sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar()

    def __enter__(self) -> Self:
        if self._bar:
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self) -> None:
        """Count one more image."""
        if self._bar:
            self._bar.advance(self._task)

    def note(self, line: str) -> None:
        """Write one line to stderr, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            note(line)


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("images: {task.completed}"), TimeElapsedColumn())
    # Results go to stdout untouched: rich must not take it over while the bar is shown.
    return Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)


def hub_options(*, revision: str | None, offline: bool, quiet: bool) -> "HubOptions":
    """Return how a command resolves hub ids: bars and remarks on stderr, unless it is to be quiet."""
    from mmt_cli.checkpoint.reference import HubOptions

    return HubOptions(revision=revision, offline=offline, progress=not quiet, note=None if quiet else _hub_note)


def _hub_note(line: str) -> None:
    note(f"mmt: {line}")
