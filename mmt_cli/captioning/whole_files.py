"""Files that are there whole or not at all, and that one process at a time writes."""

import contextlib
import errno
import fcntl
import hashlib
import os

_ATTEMPTS = 100


def is_disk_full(error: OSError) -> bool:
    """Say whether it is space that is wanting, on the disk or in the user's quota: then no other file fares better."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def replace_file(path: str, data: bytes, *, mode: int | None = None) -> None:
    """Write a file so that whoever reads it finds the old content or the new, also after a kill or a power cut.

    The temporary file beside it has a hidden name that depends on `path` alone: what a killed run leaves there, the
    next one overwrites. Two processes that write the same file do so one after the other.

    Args:
        path: not a symlink, which would be replaced.
        data: all it is to hold.
        mode: its permissions; as for any new file if None.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    folder, name = os.path.split(path)
    # A hash, since a name of 255 bytes leaves no room for a suffix.
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    temporary = os.path.join(folder, f".mmt-{digest}.tmp")  # noqa: PTH118 — Path would drop a leading ./
    descriptor = open_locked(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, wait=True)
    try:
        os.ftruncate(descriptor, 0)
        write_at(descriptor, data, 0)
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    finally:
        os.close(descriptor)


def open_locked(path: str, flags: int, *, wait: bool) -> int:
    """Open a file and lock it against other processes that lock it; return its descriptor.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is False.
        OSError: it cannot be opened.
    """
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, flags, 0o666)
        try:
            _lock(descriptor, wait=wait)
            # Who held the lock before may have renamed or removed the file that was opened.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise BlockingIOError(errno.EWOULDBLOCK, "it changes all the time")


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`, `offset` bytes from the start of a file; to do so twice does no harm."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def sync_folder(path: str) -> None:
    """Wait until the entries of the folder that `path` lies in are on the disk."""
    # A folder that may be written to but not read cannot be opened, and some network file systems cannot do it.
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # noqa: PTH120
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # some network file systems know no locks
        pass
