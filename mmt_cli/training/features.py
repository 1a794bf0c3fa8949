"""What a frozen tower made of a data set's images, kept on the disk: computed once, shared by runs and processes.

One safetensors file a data set and tower. Its name is a digest of all that decides its content, so no file is ever
out of date: other weights, another preprocessing or other images have another name. Files are mapped into memory:
opening one takes no time whatever its size, and processes that read the same one share its pages.

E examples, B images, N image tokens, D width.
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmt_cli.errors import UsageError
from mmt_cli.training.examples import Example
from mmt_cli.training.records import os_errors_named, printable

FORMAT = 1  # to be raised when the same images and weights come to give other features
DTYPE = torch.bfloat16  # half the disk and the memory of float32
_DTYPE_NAME = "BF16"  # as safetensors spells it
_TENSOR = "features"
_PARTIAL = ".part"
_ABANDONED_S = 24 * 3600  # a file still written to is never this old

Shape = tuple[int, int, int]  # E, N, D


def cache_folder() -> Path:
    """Return where feature files are kept: `mmt/features` in `$XDG_CACHE_HOME`, which is `~/.cache` by default."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification wants a relative path to be ignored.
    root = named if named.is_absolute() else Path.home() / ".cache"
    return root / "mmt" / "features"


def feature_file(tower: nn.Module, settings: Mapping[str, Any], examples: Sequence[Example]) -> Path:
    """Return the file for the features of these images, in this order.

    Args:
        tower: its state dict counts, names, dtypes, shapes and bytes.
        settings: what else decides the features, as JSON values: the tower's config, the preprocessing.
        examples: each counts by file, place in it, and the file's time stamp and size; captions do not.

    Raises:
        DataError: a file of the data set is gone.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")

    add([FORMAT, str(DTYPE), settings])
    for name, tensor in tower.state_dict().items():
        add([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(_bytes(tensor, tensor.dtype))
    for identity in _identities(examples):
        add(identity)
    return cache_folder() / f"{digest.hexdigest()}.safetensors"


def _identities(examples: Sequence[Example]) -> Iterator[tuple[str, int, int | None, int, int]]:
    """Yield file, offset and size in bytes, the file's time stamp in nanoseconds and its size, of each example."""
    for file, together in itertools.groupby(examples, key=lambda example: example.file):
        with os_errors_named(file):
            status = file.stat()
        for example in together:
            yield str(file), example.offset, example.size, status.st_mtime_ns, status.st_size


def is_whole(path: Path, shape: Shape) -> bool:
    """Say whether the file is there, with features of this shape and every byte of them.

    Only header and length are looked at: a file gets its name when all of it is on the disk.
    """
    header = _header(shape)
    try:
        with path.open("rb") as file:
            return file.read(len(header)) == header and os.fstat(file.fileno()).st_size == _size(shape)
    except OSError:
        return False


def map_features(path: Path) -> Tensor:
    """Return features_END, bfloat16, mapped from a whole file; pages are read when they are looked at."""
    with safe_open(path, framework="pt") as file:
        features_END: Tensor = file.get_tensor(_TENSOR)
    return features_END


class FeatureWriter:
    """Writes one feature file batch by batch, so that memory holds one batch, whatever the number of images.

    A context: the file gets its name when the context ends without an error, whole, over any other of that name;
    until then it has a name of its own, so runs that write the same file at once do not meet. An error leaves nothing.

    Raises:
        UsageError: the disk has no room, or the folder cannot be written; names the folder and the size.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.shape = path, shape
        self.written = 0  # examples

    def __enter__(self) -> Self:
        folder = self.path.parent
        with self._disk_errors_named():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            self._check_room()
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=f"{self.path.stem[:12]}.", suffix=_PARTIAL)
            self._partial = Path(name)
            self._file = os.fdopen(descriptor, "wb")
            self._file.write(_header(self.shape))  # stays in the file's buffer, so cannot fail
        return self

    def append(self, features_BND: Tensor) -> None:
        """Write the features of the next examples."""
        assert features_BND.shape[1:] == self.shape[1:], (features_BND.shape, self.shape)
        with self._disk_errors_named():
            self._file.write(_bytes(features_BND, DTYPE))
        self.written += len(features_BND)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._disk_errors_named(), self._file:
                if kind is None:
                    assert self.written == self.shape[0], (self.written, self.shape)
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _check_room(self) -> None:
        free, needed = shutil.disk_usage(self.path.parent).free, _size(self.shape)
        if free < needed:
            raise UsageError(
                f"no room for the features ({printable(self.path.parent)}, {needed:,} bytes needed, "
                f"{free:,} free); make room, set XDG_CACHE_HOME, or leave --cache-features out"
            )

    @contextmanager
    def _disk_errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"the features cannot be kept ({printable(self.path.parent)}, {_size(self.shape):,} bytes, "
                f"{error.strerror}); make room, set XDG_CACHE_HOME, or leave --cache-features out"
            ) from error


def _header(shape: Shape) -> bytes:
    """Return what stands before the data: https://github.com/huggingface/safetensors, Format."""
    entry = {"dtype": _DTYPE_NAME, "shape": list(shape), "data_offsets": [0, _data_bytes(shape)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, _TENSOR: entry}).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _data_bytes(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2] * DTYPE.itemsize


def _size(shape: Shape) -> int:
    """Return the bytes of the whole file."""
    return len(_header(shape)) + _data_bytes(shape)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> bytearray:
    """Return the tensor's elements in `dtype`, in order, as they lie in memory."""
    buffer = bytearray(tensor.numel() * dtype.itemsize)
    if buffer:
        torch.frombuffer(buffer, dtype=dtype).copy_(tensor.detach().flatten())
    return buffer


def _remove_abandoned(folder: Path) -> None:
    """Remove what runs that were killed while they wrote have left."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        with suppress(FileNotFoundError):  # a run that ends now removes its own
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink()
