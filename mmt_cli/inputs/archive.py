"""The members of an uncompressed tar, each checked to lie whole within the file. Nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 512


def tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield what an archive lists, as far as it is sound; reads headers alone.

    Raises:
        tarfile.ReadError: it is cut off, damaged or no uncompressed tar at all; the text says where.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                    raise tarfile.ReadError(f"{member.size} bytes at {member.offset_data} of {size}")
                yield member
                archive.members.clear()  # it would keep every member it has listed
            # tarfile takes a broken header, or the end of the file, for the end of the archive; that is a zero block.
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end mark at {archive.offset} of {size} bytes")
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise tarfile.ReadError(str(error) or type(error).__name__) from error
