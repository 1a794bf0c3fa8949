"""Reading an image as a person sees it: any common file in, an upright opaque RGB image out.

The formats are JPEG, MPO, PNG, WebP, GIF, BMP, TIFF and AVIF, and HEIF where pillow-heif is installed. The format is
told from the first bytes, and Pillow's class for it is used directly instead of `PIL.Image.open`, which would add its
own pixel limit, parse the index of an MPO's further pictures (its first one is a plain JPEG), import every plugin for
a TIFF or WebP, and hide why a file failed. PostScript is never opened: that would start Ghostscript.

Two things are set once for the whole process, because no call can set them for itself alone: Pillow's remarks about odd
files are kept off stderr when this module is imported, and those of libtiff when the first TIFF is opened.
"""

import contextlib
import ctypes
import functools
import importlib
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from PIL import Image, ImageFile, _imaging

from mmt_cli.errors import ImageError, ImageErrorKind
from mmt_cli.inputs.rgb import opaque_rgb, raw_mode

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MAX_PIXELS = 64_000_000

warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_HEAD_BYTES = 64
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])"), "TIFF"),
    (re.compile(rb"....ftyp(?:....)*?avi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(?:....)*?(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIF"),
)
_FILE_CLASSES = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}

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
        with _as_image_errors("the image"):
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
    with _as_image_errors(name, file):
        image_format = _format_of(file.read(_HEAD_BYTES), name)
        file.seek(0)
        image = _file_class(image_format, name)(file)
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


def _format_of(head: bytes, name: str) -> str:
    if not head:
        raise ImageError("unreadable", f"{name} is empty (0 bytes); name an image file")
    for signature, image_format in _SIGNATURES:
        if signature.match(head):
            return image_format
    known = ", ".join(_FILE_CLASSES)
    raise ImageError("unreadable", f"{name} is none of {known} (it begins with {head[:8]!r}); convert it to one")


def _file_class(image_format: str, name: str) -> type[ImageFile.ImageFile]:
    """Return Pillow's class for a format, importing its plugin on first use."""
    if image_format == "TIFF":
        _silence_libtiff()
    module, class_name = _FILE_CLASSES[image_format]
    try:
        return cast(type[ImageFile.ImageFile], getattr(importlib.import_module(module), class_name))
    except ImportError as error:
        advice = "pip install 'mmt-cli[heif]'" if image_format == "HEIF" else "convert it to PNG or JPEG"
        raise ImageError("unsupported", f"{name} is {image_format}, which needs {module}; {advice}") from error


@functools.cache
def _silence_libtiff() -> None:
    """Take away libtiff's message handlers, which write to file descriptor 2; the failure itself is still raised.

    Pillow offers no switch, so this asks the libtiff that Pillow is linked with. Where its functions cannot be reached
    (a static build) the remarks stay.
    """
    with contextlib.suppress(OSError, AttributeError):
        linked = ctypes.CDLL(_imaging.__file__)
        for set_handler in (linked.TIFFSetErrorHandler, linked.TIFFSetWarningHandler):
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


@contextlib.contextmanager
def _as_image_errors(name: str, file: IO[bytes] | None = None) -> Iterator[None]:
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
