"""Which format a file has by its first bytes, and Pillow's class for it.

The class is used directly instead of `PIL.Image.open`, which would add its own pixel limit, parse the index of an MPO's
further pictures (its first one is a plain JPEG), import every plugin for a TIFF or WebP, and hide why a file failed.
PostScript is never opened: that would start Ghostscript.
"""

import contextlib
import ctypes
import functools
import importlib
import re
from typing import cast

from PIL import ImageFile, _imaging

from mmt_cli.errors import ImageError

HEAD_BYTES = 64
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


def format_of(head: bytes, name: str) -> str:
    """Return the format of a file that begins with these `HEAD_BYTES`; ImageError where it is none of those known."""
    if not head:
        raise ImageError("unreadable", f"{name} is empty (0 bytes); name an image file")
    for signature, image_format in _SIGNATURES:
        if signature.match(head):
            return image_format
    known = ", ".join(_FILE_CLASSES)
    raise ImageError("unreadable", f"{name} is none of {known} (it begins with {head[:8]!r}); convert it to one")


def file_class(image_format: str, name: str) -> type[ImageFile.ImageFile]:
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
