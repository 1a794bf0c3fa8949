"""What every reader of a format is given."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmt_cli.training.findings import Findings
from mmt_cli.training.records import is_url, locate

Split = Literal["train", "val"]
_MAX_FOLDERS = 10_000  # whose names are kept


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is wanted of a source, and where problems go.

    A reader counts in `findings` each example that it takes and each entry that it refuses, and raises DataError where
    the rest of a source cannot be made out.
    """

    findings: Findings
    images: Path | None = None  # where the images of lists lie; None: beside the list
    split: Split = "train"  # of formats whose files hold several

    def folder(self, path: Path) -> "ImageFolder":
        """Return where the images that a list names lie."""
        return ImageFolder(path.parent if self.images is None else self.images)


class ImageFolder:
    """The images a list can name: regular files in one folder or below.

    Each of its folders is listed once, which for long lists takes a tenth of the time that asking for each file takes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path  # as the user named it
        self.root = path.resolve()
        self._names: dict[str, frozenset[str]] = {}

    def find(self, name: str, where: str) -> Path:
        """Return the file of an image, absolute.

        Raises:
            DataError: `name` leaves the folder, or is no file there.
        """
        return self.root / name if self._lists(name) else locate(self.root, name, where)

    def check(self, name: str, where: str) -> None:
        """Raise what `find` raises."""
        if not self._lists(name):
            locate(self.root, name, where)

    def _lists(self, name: str) -> bool:
        """Say whether `name` is a plain file; what is not may still be a link to one."""
        folder, _, file = name.rpartition("/")
        if folder not in self._names:
            if len(self._names) >= _MAX_FOLDERS:
                self._names.clear()
            self._names[folder] = _regular_files(self.root, folder)
        return file in self._names[folder]


def _regular_files(root: Path, folder: str) -> frozenset[str]:
    """Return the names of the plain files in a folder below `root`, none where it is not below or not to be read."""
    if is_url(f"{folder}/") or Path(folder).is_absolute() or ".." in Path(folder).parts:
        return frozenset()
    try:
        path = (root / folder).resolve(strict=True)
        if not path.is_relative_to(root):
            return frozenset()
        with os.scandir(path) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (OSError, RuntimeError, ValueError):  # as in `locate`
        return frozenset()
