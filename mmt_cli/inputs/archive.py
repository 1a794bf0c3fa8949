"""The members of an uncompressed tar, each checked to lie whole within the file. Nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 512


class CutOffError(tarfile.ReadError):
    """An archive ends before what it lists does, or without an end mark."""


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield what an archive lists, as far as it is sound; reads headers alone.

    Raises:
        CutOffError: it is cut off; the text says where.
        tarfile.ReadError: it is damaged or no uncompressed tar at all; likewise.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.size} bytes at {member.offset_data} of {size}")
                # The size of a sparse file is what it unpacks to.
                if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                    raise CutOffError(f"{member.size} bytes at {member.offset_data} of {size}")
                yield member
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member it has listed
            # tarfile takes a broken header, or the end of the file, for the end of the archive; that is a zero block.
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end mark at {archive.offset} of {size} bytes")
    except CutOffError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        kind = CutOffError if file.tell() >= size else tarfile.ReadError
        raise kind(str(error) or type(error).__name__) from error
