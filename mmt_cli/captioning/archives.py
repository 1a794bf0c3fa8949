"""The images in a WebDataset shard: an uncompressed tar whose members' suffixes tell what they are."""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmt_cli.captioning.folders import is_image_name
from mmt_cli.captioning.items import Item, Member, stamp_of
from mmt_cli.errors import ImageError
from mmt_cli.inputs.archive import CutOffError, tar_members


def is_archive(path: str) -> bool:
    """Say whether `path` is a tar by its name, and a file that can be listed; raises nothing."""
    if not path.lower().endswith(".tar"):
        return False
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def images_in_archive(path: str) -> Iterator[Item]:
    """Yield the images of an archive in its order; `path/NAME` is what their records call them.

    A member that is named like an image and is no whole file (a link, a sparse file) is an item that fails. So is the
    archive itself, after all that was sound, where it is damaged or cut off.
    """
    try:
        with Path(path).open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            for member in tar_members(file):
                if is_image_name(member.name) and not member.isdir():
                    yield _item(path, member, stamp)
    except CutOffError as error:
        what = f"{path} is cut off ({error}); what stands before that is read, get a whole copy for the rest"
        yield Item(path=path, failure=ImageError("truncated", what))
    except tarfile.ReadError as error:
        what = f"{path} is no sound uncompressed tar ({error}); what stands before that is read, make it again"
        yield Item(path=path, failure=ImageError("unreadable", what))
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror}); check path and permissions"
        yield Item(path=path, failure=ImageError("unreadable", what))


def _item(archive: str, member: tarfile.TarInfo, stamp: tuple[int, int]) -> Item:
    # The name is a label alone, nothing is written there; `./` and a leading `/` are how some tools write names.
    name = PurePosixPath(member.name)
    path = f"{archive}/{name.relative_to(name.anchor)}"
    if not member.isreg() or member.issparse():
        what = f"{path} is {_kind(member)} in its archive; make the archive of whole files (tar -h)"
        return Item(path=path, failure=ImageError("unsupported", what))
    return Item(path=path, member=Member(archive=archive, offset=member.offset_data, size=member.size, stamp=stamp))


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    return "a link" if member.islnk() or member.issym() else "no regular file"
