"""The file that a run writes its records to: whole up to the last batch whatever happens, and gone on with later."""

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmt_cli.captioning.resume import (
    SETTINGS_SUFFIX,
    DoneItems,
    check_settings,
    read_settings,
    scan,
    write_settings,
)
from mmt_cli.captioning.whole_files import is_disk_full, open_locked, sync_folder, write_at
from mmt_cli.captioning.writers import Layout
from mmt_cli.errors import OutputError, UsageError
from mmt_cli.inputs.encoding import to_bytes

_OPEN_ALREADY = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")  # where they lead to files, somebody else's


class OutputFile:
    """A file of records, for one run at a time.

    `open` locks it and changes nothing in it; `start` empties it, or cuts off what a killed run left torn; then records
    are written, and each `commit` makes sure of them. In a `with` it is opened and closed. A pipe or a device takes
    records as well, but cannot be gone on with.

    `FILE.mmt` beside it says how it was made. Where captions stand alone (`Layout.bare`) nothing in the file says of
    which image they are, so the image has to be among the settings.

    Attributes:
        path: the file, as the user named it.
        layout: how records look.
        identity: device and inode, by which it is known under any name; from `open` on.
        fresh: whether there is nothing to go on with, so that `start` can wait for the first record; from `open` on.
    """

    def __init__(self, path: str, *, layout: Layout, resume: bool) -> None:
        self.path = path
        self.layout = layout
        self._resume = resume
        self._done = DoneItems()
        # How many bytes are safe, and what comes after them: one value, so that Ctrl-C never comes between the two.
        self._state: tuple[int, list[bytes]] = (0, [])
        self._started = False
        self._failure: OutputError | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except OutputError:
            if error is None:  # what ended the run first is what its user is told
                raise

    def open(self) -> None:
        """Take hold of the file.

        Raises:
            UsageError: it cannot be written, another run writes it, or it cannot be gone on with.
        """
        if not self.path or self.path.endswith(SETTINGS_SUFFIX):
            what = f"--output '{self.path}', {SETTINGS_SUFFIX} files say how outputs were made"
            raise UsageError(f"the output cannot have this name ({what}); name it otherwise")
        try:
            self._is_stream, self._is_new = _is_stream(self.path), not Path(self.path).exists()
            self._descriptor = self._take_hold()
        except BlockingIOError:
            what = f"{self.path} is locked, two runs would mix their records"
            raise UsageError(f"another run writes this output ({what}); wait for it, or name another file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            advice = "name a file in a folder that exists and can be written to"
            raise UsageError(f"{self.path} cannot be written ({reason}); {advice}") from None
        status = os.fstat(self._descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.fresh = not self._resume or status.st_size == 0
        try:
            if self._is_stream and self._resume:
                raise UsageError(f"{self.path} cannot be gone on with (it is no regular file); leave --resume out")
            self._settings = {} if self.fresh else read_settings(self.path)
        except UsageError:
            self.close()
            raise

    def _take_hold(self) -> int:
        if self._is_stream:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        _check_settings_file(self.path)
        return open_locked(self.path, os.O_RDWR | os.O_CREAT, wait=False)

    def start(self, settings: Mapping[str, Any]) -> None:
        """Begin for good: of an earlier run's records only those stay that are gone on with.

        Args:
            settings: all that makes a record what it is, as values for JSON, in the order in which differences are
                told; None is the same as leaving a setting out. What the layout says is added.

        Raises:
            UsageError: the file was made with other settings, or holds something else than records.
            OutputError: it cannot be written.
        """
        assert not self._started
        settings = {**settings, **_layout_settings(self.layout)}
        if not self.fresh:
            check_settings(self.path, self._settings, settings)
            with open(self._descriptor, "rb", closefd=False) as file:
                self._done, end = scan(file, self.path, self.layout)
            self._state = (end, [])
        try:
            self._prepare(settings)
        except OSError as error:
            raise self._failed(error) from None
        self._started = True
        if self._state[0] == 0:
            self.write(self.layout.header())

    def _prepare(self, settings: Mapping[str, Any]) -> None:
        if self._is_stream:
            return
        os.ftruncate(self._descriptor, self._state[0])
        os.fsync(self._descriptor)
        # Only once the old records are gone from the disk: new settings beside old records would be a lie.
        if self.fresh:
            write_settings(self.path, settings)
            sync_folder(os.path.realpath(self.path))

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._started

    def take(self, path: str) -> bool:
        """Say whether this occurrence of an item is in the file already, and count it off."""
        assert self.fresh or self._started
        return self._done.take("" if self.layout.bare else path)

    def write(self, text: str) -> None:
        """Add to what the next `commit` writes."""
        assert self._started
        self._state[1].append(to_bytes(text))

    def commit(self) -> None:
        """Write what was added since the last time, and wait until it is on the disk.

        Raises:
            OutputError: the file cannot be written; it then ends where it did before, and takes no more.
            BrokenPipeError: nobody reads the pipe any more.
        """
        if self._failure is not None:
            raise self._failure
        safe, added = self._state[0], b"".join(self._state[1])
        try:
            if self._is_stream:
                self._state = (safe, [])  # what is in a pipe cannot be written a second time
                _write_on(self._descriptor, added)
            elif added:
                write_at(self._descriptor, added, safe)
                os.fsync(self._descriptor)
                self._state = (safe + len(added), [])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Commit what is left and let go of the file; one that was made for a run that never started goes.

        Raises:
            OutputError: the file cannot be written.
            BrokenPipeError: nobody reads the pipe any more.
        """
        if self._descriptor < 0:
            return
        try:
            if self._started and self._failure is None:
                self.commit()
            elif not self._started and self._is_new and not self._is_stream:
                with contextlib.suppress(OSError):
                    Path(os.path.realpath(self.path)).unlink()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failed(self, error: OSError) -> OutputError:
        if self._is_stream:
            advice = "send it somewhere else"
        else:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._state[0])
            advice = f"{'free some space' if is_disk_full(error) else 'mend that'}, then run it again with --resume"
        self._failure = OutputError(f"{self.path} cannot be written ({error.strerror}); {advice}")
        return self._failure


def _layout_settings(layout: Layout) -> dict[str, Any]:
    return {
        "format": "text without paths" if layout.bare else layout.kind,
        "num_captions": layout.captions_per_item,
        "grounding": layout.grounded,
    }


def _is_stream(path: str) -> bool:
    """Say whether a file only takes what comes: nothing in it can be read, replaced or cut off.

    Raises:
        OSError: it takes nothing.
    """
    if os.path.abspath(path).startswith(_OPEN_ALREADY):  # noqa: PTH100
        return True
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISBLK(mode):
        raise OSError(errno.ENOTSUP, "it is a disk")
    return not stat.S_ISREG(mode)


def _check_settings_file(path: str) -> None:
    """Find out before anything is lost whether `FILE.mmt` can be written.

    Raises:
        OSError: it cannot.
    """
    folder = os.path.dirname(path) or "."  # noqa: PTH120
    if not os.access(folder, os.W_OK | os.X_OK):
        Path(folder).stat()  # says so if it is not there
        raise PermissionError(errno.EACCES, f"{path}{SETTINGS_SUFFIX} belongs beside it, but the folder takes no files")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(Path(path + SETTINGS_SUFFIX).stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, f"{path}{SETTINGS_SUFFIX} belongs beside it, but is a folder")


def _write_on(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
