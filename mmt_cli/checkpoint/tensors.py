"""Tensors of weight files: mapped as they are, or read piece by piece into memory of their own.

What the model can take as it lies in the file stays a view of the file. Everything else (another dtype, parts that are
joined, matrices that are transposed) is read without mapping it: mapped pages would count a second time.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmt_cli.checkpoint.header import TensorInfo
from mmt_cli.checkpoint.keymap import Origin
from mmt_cli.errors import ModelError, shown
from mmt_cli.model.pages import forget

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
_PIECE = 4 * 1024 * 1024  # elements converted at a time


class Tensors(Protocol):
    """The tensors of one checkpoint, by the names in its files."""

    def mapped(self, name: str) -> Tensor:
        """Return a tensor as a view of its file."""

    def copy(self, name: str, out_N: Tensor) -> None:
        """Write the elements of a tensor, in order, into contiguous memory of as many, whose dtype may differ."""


class SafetensorsFiles:
    """Tensors of safetensors files, whose headers have been checked.

    Raises:
        ModelError: a file cannot be read any more, or is not what it was; so do its methods.
    """

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self.infos = infos
        self._open = ExitStack()
        self._mapped: dict[Path, Any] = {}
        self._raw: dict[Path, FileIO] = {}
        for path in dict.fromkeys(info.path for info in infos.values()):
            with _reading(path):
                self._mapped[path] = self._open.enter_context(safe_open(path, framework="pt"))
                self._raw[path] = self._open.enter_context(path.open("rb", buffering=0))

    def __enter__(self) -> "SafetensorsFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def mapped(self, name: str) -> Tensor:
        """Return a tensor as a view of its file."""
        info = self.infos[name]
        with _reading(info.path):
            tensor: Tensor = self._mapped[info.path].get_tensor(name)
            if tuple(tensor.shape) != info.shape:
                raise OSError(f"{name!r} has changed: {list(info.shape)} before, {list(tensor.shape)} now")
        return tensor

    def copy(self, name: str, out_N: Tensor) -> None:
        """Write the elements of a tensor, in order, into contiguous memory of as many, whose dtype may differ."""
        info = self.infos[name]
        assert info.start is not None, name
        file = self._raw[info.path]
        with _reading(info.path):
            file.seek(info.start)
            if DTYPES[info.dtype] == out_N.dtype:
                _fill(file, bytes_of(out_N))
                return
            buffer_N = torch.empty(min(_PIECE, max(len(out_N), 1)), dtype=DTYPES[info.dtype])
            for piece_N in torch.split(out_N, _PIECE):
                stored_N = buffer_N[: len(piece_N)]
                _fill(file, bytes_of(stored_N))
                piece_N.copy_(stored_N)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a file can raise into ModelError, with its path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be read ({path}, {shown(str(error))}); try again") from error


class PickledFiles:
    """Tensors that torch has mapped from its own format."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __enter__(self) -> "PickledFiles":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def mapped(self, name: str) -> Tensor:
        """Return a tensor as a view of its file."""
        return self.tensors[name]

    def copy(self, name: str, out_N: Tensor) -> None:
        """Write the elements of a tensor, in order, into contiguous memory of as many, whose dtype may differ.

        The file's pages leave memory again.
        """
        stored_N = self.tensors[name].contiguous().view(-1)
        for piece_N, stored in zip(torch.split(out_N, _PIECE), torch.split(stored_N, _PIECE), strict=True):
            piece_N.copy_(stored)
            forget(stored)


def take(tensors: Tensors, origin: Origin, like: Tensor, dtype: torch.dtype, infos: Mapping[str, TensorInfo]) -> Tensor:
    """Return a tensor of the model from where it lies in the files.

    Args:
        tensors: of the checkpoint.
        origin: whose parts, put together, have the elements of `like`.
        like: shape of the result.
        dtype: of the result.
        infos: what the files say of each tensor.
    """
    [first, *more] = origin.names
    # A transposed matrix stays as it lies, seen the other way round: products are as fast, and nothing is copied.
    shape = like.shape[::-1] if origin.transposed else like.shape
    if not more and DTYPES[infos[first].dtype] == dtype and tensors.mapped(first).is_contiguous():
        taken = tensors.mapped(first)
    else:
        taken = torch.empty(like.numel(), dtype=dtype)
        parts = torch.split(taken, [infos[name].parameters for name in origin.names])
        for name, part_N in zip(origin.names, parts, strict=True):
            tensors.copy(name, part_N)
    taken = taken.view(shape)
    return taken.T if origin.transposed else taken


def bytes_of(x_N: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    size = x_N.numel() * x_N.element_size()
    return memoryview(b"") if not size else memoryview((ctypes.c_char * size).from_address(x_N.data_ptr())).cast("B")


def _fill(file: FileIO, target: memoryview) -> None:
    """Read until the memory is full."""
    while target:
        read = file.readinto(target)
        if not read:
            raise OSError("it ends within a tensor")
        target = target[read:]
