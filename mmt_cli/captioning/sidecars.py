"""A text file beside each image with its captions, as `mmt train` and other trainers read them."""

import codecs
import errno
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from mmt_cli.captioning.whole_files import is_disk_full, replace_file
from mmt_cli.errors import ImageError, OutputError, UsageError
from mmt_cli.inputs.encoding import KEEP_BYTES
from mmt_cli.inputs.image import IMAGE_SUFFIXES

IfExists = Literal["skip", "overwrite", "append", "prepend"]

_LINE_ENDS = re.compile(r"[\r\n]+")
# What a text begins with that says how it is encoded.
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Sidecar:
    """Where captions go beside their images, and what happens where something is there already.

    Attributes:
        ext: suffix of the files; a dot is put before it if it has none.
        if_exists: `skip`: the image is left out; `overwrite`; `append` or `prepend`: new lines behind or before the
            old ones.

    Raises:
        UsageError: no file name beside an image can end in `ext`, or only that of an image.
    """

    ext: str = ".txt"
    if_exists: IfExists = "skip"

    def __post_init__(self) -> None:
        ext = self.ext if self.ext.startswith(".") else f".{self.ext}"
        if not ext.strip(".") or "/" in ext or "\0" in ext:
            raise UsageError(f"sidecars cannot be named so (--sidecar-ext '{self.ext}'); give a suffix such as .txt")
        if PurePath(f"name{ext}").suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"sidecars would be taken for images (--sidecar-ext '{ext}'); give a suffix such as .txt")
        object.__setattr__(self, "ext", ext)

    def path_of(self, image: str) -> str:
        """Return the file that holds the captions of an image: the suffix of the image replaced."""
        return image.removesuffix(PurePath(os.path.basename(image)).suffix) + self.ext  # noqa: PTH119

    def wanted(self, image: str) -> bool:
        """Say whether an image is to be captioned at all."""
        return self.if_exists != "skip" or not os.path.exists(self.path_of(image))  # noqa: PTH110

    def write(self, image: str, captions: Sequence[str]) -> None:
        """Write an image's captions, one a line; line ends inside them become spaces. Whole or not at all.

        Raises:
            ImageError: the system does not allow it here; elsewhere it may.
            OutputError: the disk is full.
        """
        path = os.path.realpath(self.path_of(image))  # a symlink stays one
        try:
            if path == os.path.realpath(image):
                raise FileExistsError(errno.EEXIST, "it is the image itself")
            mode = _mode(path)
            if mode is not None and self.if_exists == "skip":
                return  # another image of the same name but for the suffix has been here since
            old = Path(path).read_bytes() if mode is not None and self.if_exists != "overwrite" else b""
            replace_file(path, self._joined(old, captions), mode=mode)
        except OSError as error:
            reason = f"{os.path.basename(path)}: {error.strerror}"  # noqa: PTH119
            if is_disk_full(error):
                advice = "free some space, then run it again"
                raise OutputError(f"the sidecar of {image} cannot be written ({reason}); {advice}") from None
            what = f"{image} has a caption, but its sidecar cannot be written ({reason}); mend that"
            raise ImageError("unreadable", what) from None

    def _joined(self, old: bytes, captions: Sequence[str]) -> bytes:
        """Return what the file is to hold: old text stays as it is, and new text is encoded as that is."""
        mark, encoding = next((found for found in _MARKS if old.startswith(found[0])), (b"", "utf-8"))
        old = old.removeprefix(mark)
        text = "".join(_LINE_ENDS.sub(" ", caption.strip("\r\n")) + "\n" for caption in captions)
        new = text.encode(encoding, KEEP_BYTES)
        if self.if_exists == "prepend":
            return mark + new + old
        return mark + old + _missing_line_end(old, encoding) + new


def _missing_line_end(old: bytes, encoding: str) -> bytes:
    end = "\n".encode(encoding)
    return b"" if not old or old.endswith(end) else end


def _mode(path: str) -> int | None:
    """Return the permissions of a file, None if there is none.

    Raises:
        OSError: it is not to be replaced.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENOTSUP, "something else than a file is there")
    if not os.access(path, os.W_OK):  # renaming would not mind
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode)
