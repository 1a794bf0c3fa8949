"""Reading an image as a person sees it: any common file in, an upright opaque RGB image out.

The formats are JPEG, MPO, PNG, WebP, GIF, BMP, TIFF and AVIF, and HEIF where pillow-heif is installed.

Two things are set once for the whole process, because no call can set them for itself alone: Pillow's remarks about odd
files are kept off stderr when this module is imported, and those of libtiff when the first TIFF is opened.
"""

import contextlib
import io
import logging
import os
import stat
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from mmt_cli.errors import ImageError
from mmt_cli.inputs.image_errors import as_image_errors
from mmt_cli.inputs.image_formats import HEAD_BYTES, file_class, format_of
from mmt_cli.inputs.rgb import opaque_rgb, raw_mode

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MAX_PIXELS = 64_000_000

warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Decoding takes up to eight bytes a pixel: images of more pixels than this are decoded one at a time, whatever the
# number of threads.
_LARGE_PIXELS = 16_000_000
_one_large_image = threading.Lock()

_ORIENTATION_TAG = 0x0112
_TRANSPOSE_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What the header of an image's file says.

    Attributes:
        format: JPEG, PNG and so on.
        mode: Pillow's name of how pixels are stored, such as RGB or I;16.
        width: in pixels, as stored: before it is turned upright.
        height: likewise.
        orientation: EXIF's number from 1 (upright) to 8.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    draft_size: tuple[int, int] | None = None,
) -> Image.Image:
    """Read `source` (a path, a file's bytes or a Pillow image) as an upright opaque RGB image.

    EXIF orientation is applied, 16-bit samples are scaled to 8, transparency is laid over white, other colour spaces
    are converted, and the first frame of an animation is taken. The result is a new image of mode RGB without metadata.
    Safe to call from several threads.

    Args:
        source: What to read. A Pillow image is not changed, except that it is loaded if it was not.
        max_pixels: The largest width times height; checked on the header, before anything is decoded.
        draft_size: (height, width) in pixels: a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size as long as the
            upright result is at least so large in both directions. Saves time and memory before a resize to that size.

    Raises:
        ImageError: the only exception for whatever is wrong with `source`; its `kind` is one of the contract's.
    """
    if isinstance(source, Image.Image):
        with as_image_errors("the image"):
            _check_pixels(source, max_pixels, "the image")
            return _as_seen(source)
    if isinstance(source, bytes):
        return _read_file(io.BytesIO(source), "the image data", max_pixels, draft_size)
    name = os.fspath(source)
    with _open_regular_file(name) as file:
        return _read_file(file, name, max_pixels, draft_size)


def describe_image(
    source: str | bytes, *, max_pixels: int = MAX_PIXELS, draft_size: tuple[int, int] | None = None
) -> tuple[ImageFacts, Image.Image]:
    """Read `source` as `read_image` does, and return what its file says of itself beside the image.

    Raises:
        ImageError: as `read_image` does.
    """
    facts: list[ImageFacts] = []
    if isinstance(source, bytes):
        image = _read_file(io.BytesIO(source), "the image data", max_pixels, draft_size, facts)
    else:
        with _open_regular_file(source) as file:
            image = _read_file(file, source, max_pixels, draft_size, facts)
    return facts[0], image


def _read_file(
    file: IO[bytes],
    name: str,
    max_pixels: int,
    draft_size: tuple[int, int] | None,
    facts: list[ImageFacts] | None = None,
) -> Image.Image:
    with as_image_errors(name, file):
        image_format = format_of(file.read(HEAD_BYTES), name)
        file.seek(0)
        image = file_class(image_format, name)(file)
        _check_pixels(image, max_pixels, name)
        if facts is not None:
            facts.append(_facts(image, image_format))
        if draft_size is not None and image_format == "JPEG":
            height, width = draft_size
            image.draft(None, (height, width) if _orientation(image) in _QUARTER_TURNS else (width, height))
        with _one_large_image if image.width * image.height > _LARGE_PIXELS else contextlib.nullcontext():
            return _as_seen(image)


def _facts(image: Image.Image, image_format: str) -> ImageFacts:
    """Return what the header says; a PNG whose EXIF stands at the end is taken for upright here."""
    width, height = image.size
    return ImageFacts(format=image_format, mode=image.mode, width=width, height=height, orientation=_orientation(image))


def _open_regular_file(name: str) -> IO[bytes]:
    """Open a file for reading; refuse folders, pipes and devices without opening them (a FIFO would wait for ever)."""
    try:
        mode = Path(name).stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("unreadable", f"{name} is a folder; name an image file")
        if not stat.S_ISREG(mode):
            raise ImageError("unreadable", f"{name} is not a regular file; name an image file")
        return Path(name).open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError("unreadable", f"{name} cannot be opened ({reason}); check path and permissions") from error


def _check_pixels(image: Image.Image, max_pixels: int, name: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        what = f"{name} has {width} x {height} = {width * height} pixels, more than {max_pixels}"
        raise ImageError("too_large", f"{what}; make it smaller or raise --max-pixels")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation as stored; 1 (upright) where there is none or it is not a number."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF fails in many ways, while the picture may be sound
        return 1
    return orientation if isinstance(orientation, int) else 1


def _as_seen(image: Image.Image) -> Image.Image:
    stored = raw_mode(image)
    image.load()
    # After loading: a PNG may hold its EXIF at the end, and Pillow turns a TIFF upright by itself.
    orientation = _orientation(image)
    rgb = opaque_rgb(image, stored)
    if orientation in _TRANSPOSE_TO_UPRIGHT:
        rgb = rgb.transpose(_TRANSPOSE_TO_UPRIGHT[orientation])
    if rgb is image:
        rgb = image.copy()  # leaves the caller's image, or the file and its decoder, behind
    # An orientation tag that stayed here would turn the picture a second time.
    rgb.info = {}
    return rgb
