"""The report of a captioning run: one page of HTML that needs nothing beside it, written while the run goes on.

Here is how the file comes to be; what stands in it is in `report_page`.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from mmt_cli.captioning import report_page
from mmt_cli.captioning.whole_files import is_disk_full, open_locked, sync_folder
from mmt_cli.captioning.writers import Record
from mmt_cli.errors import OutputError, UsageError

THUMBNAIL_SIDE = 240  # pixels
_QUALITY = 60  # of a thumbnail, which is then about 7 KB


def thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG of an RGB image, scaled down to `THUMBNAIL_SIDE` pixels on its longer side if it is larger.

    Leaves `image` as it is, and is safe to call from several threads.
    """
    scale = THUMBNAIL_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()


class Report:
    """One page, which takes its place when it is whole: until then, and if the run is killed, the old one stays.

    What is added goes to a hidden file beside the page at once, so memory stays flat. The hidden file's name follows
    from the page's, so the next run takes over what a killed one left; a lock keeps two runs apart.
    """

    def __init__(self, path: str, *, title: str, settings: Mapping[str, str]) -> None:
        """Prepare a report; nothing is written yet.

        Args:
            path: where the page shall be; a link is followed.
            title: the page's heading.
            settings: names and values of what the run was told.
        """
        self._path = path
        self._target = Path(os.path.realpath(path))
        # A hash, since a name of 255 bytes leaves no room for a suffix.
        digest = hashlib.blake2b(os.fsencode(self._target.name), digest_size=8).hexdigest()
        self._hidden = self._target.parent / f".mmt-{digest}.part"
        self._title = title
        self._settings = settings
        self._file: BinaryIO | None = None
        self._last: Record | None = None

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the page that is there already, or of the hidden file while there is none."""
        assert self._file is not None, "the report is not open"
        try:
            status = self._target.stat()
        except FileNotFoundError:
            status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino

    def open(self) -> None:
        """Begin the page.

        Raises:
            UsageError: it cannot be where it shall be: no such folder, no permission, no plain file, another run's.
            OutputError: the disk is full.
        """
        what = f"the report {self._path}"
        try:
            if self._target.is_dir():
                raise UsageError(f"{what} cannot be written (a folder has that name); name a file")
            if self._target.exists() and not self._target.is_file():
                raise UsageError(f"{what} cannot be written (it is no plain file); name another one")
            descriptor = open_locked(str(self._hidden), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, wait=False)
        except BlockingIOError:
            raise UsageError(f"{what} is being written by another run; wait for it or name another file") from None
        except OSError as error:
            raise UsageError(f"{what} cannot be written ({error.strerror}); check its folder and permissions") from None
        self._file = open(descriptor, "wb")  # noqa: PTH123, SIM115 — a descriptor, which `close` or `abandon` closes
        self._file.truncate()  # what a killed run left
        self._write(report_page.head(self._title, self._settings))

    def add(self, record: Record, thumbnail: bytes | None) -> None:
        """Write one record; further captions of an image go into the card of its first one.

        Args:
            record: what became of an image. Its captions come one after the other, with ranks from 1.
            thumbnail: the image as a small JPEG, if there is one; looked at for an image's first record only.

        Raises:
            OutputError: the page cannot be written on, and is given up.
        """
        start = "" if _continues(self._last, record) else self._end_card() + report_page.card(record, thumbnail)
        self._write(start + report_page.answer(record))
        self._last = record

    def close(self, summary: Mapping[str, str]) -> None:
        """Finish the page with what was added, and put it in its place; does nothing where there is none to finish.

        Args:
            summary: names and values to show at the top: counts, seconds, where the run was.

        Raises:
            OutputError: the page cannot be written on, and is given up.
        """
        if self._file is None:
            return
        self._write(self._end_card() + report_page.tail(summary))
        with self._os_errors_named():
            os.fsync(self._file.fileno())
            self._hidden.replace(self._target)
        self._file.close()
        self._file = None
        sync_folder(str(self._target))

    def abandon(self) -> None:
        """Give the page up: the old one stays, and nothing else."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            self._hidden.unlink()
        with contextlib.suppress(OSError):
            file.close()

    def _end_card(self) -> str:
        return "" if self._last is None else report_page.CARD_END

    def _write(self, text: str) -> None:
        assert self._file is not None, "the report is not open"
        with self._os_errors_named():
            self._file.write(text.encode("utf-8"))
            self._file.flush()

    @contextlib.contextmanager
    def _os_errors_named(self) -> Iterator[None]:
        """Give the page up when the system takes no more of it."""
        try:
            yield
        except OSError as error:
            self.abandon()
            advice = "free some space, or name another file" if is_disk_full(error) else "name another file"
            raise OutputError(f"the report {self._path} cannot be written ({error.strerror}); {advice}") from None


def _continues(last: Record | None, record: Record) -> bool:
    """Say whether a record is a further caption of the image of the last one; an image may also be named twice."""
    if last is None or last.rank is None or record.rank is None:
        return False
    return record.path == last.path and record.rank > last.rank
