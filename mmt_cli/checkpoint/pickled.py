"""Weights in torch's own format, which older folders hold: names and shapes first, no code from the file."""

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmt_cli.checkpoint.header import DTYPE_BYTES, MAX_TENSORS, TensorInfo
from mmt_cli.errors import ModelError, shown

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PICKLE_BYTES = 4 * 1024 * 1024  # 30,000 tensors; its parser in Python reads about a megabyte a second
_SPELLINGS = {
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int16": "I16",
    "torch.int32": "I32",
    "torch.int64": "I64",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float32": "F32",
    "torch.float64": "F64",
}


def map_pickle(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a PyTorch state dict by name, mapped from the file where its format allows that.

    Raises:
        ModelError: the file cannot be read, wants other code than torch's own tensors, or holds something else.
    """
    import torch

    try:
        _check_archive(path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            try:
                given = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):  # files before torch 1.6 cannot be mapped
                    raise
                given = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        # torch says on many lines how to run the file's code all the same.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is damaged" if refused else shown(str(error).partition("\n")[0])
        raise ModelError(f"the weights cannot be read ({path}, {reason}); give another file") from error
    tensors = isinstance(given, dict) and all(
        isinstance(name, str) and isinstance(t, torch.Tensor) and t.layout == torch.strided for name, t in given.items()
    )
    if not tensors:
        raise ModelError(f"the weights are no map of tensors ({path}, {shown(type(given))}); give a state dict")
    if len(given) > MAX_TENSORS:
        raise ModelError(f"too many tensors ({path}, {len(given)}, allowed {MAX_TENSORS}); use another file")
    return dict(given)


def _check_archive(path: Path) -> None:
    """Check the zip archive around a state dict, which torch writes uncompressed; older files are none.

    torch would unpack a compressed entry whole, however far it grows.

    Raises:
        ValueError: an entry is compressed, or the pickle is larger than that of any model.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{shown(entry.filename)} is compressed")
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise ValueError(f"{shown(entry.filename)} has {entry.file_size} bytes, allowed {_MAX_PICKLE_BYTES}")


def pickle_infos(path: Path, tensors: "dict[str, Tensor]") -> Iterable[TensorInfo]:
    """Yield what a header would say of each tensor.

    Raises:
        ModelError: a tensor is of a dtype that no model of ours holds.
    """
    for name, tensor in tensors.items():
        dtype = _SPELLINGS.get(str(tensor.dtype))
        if dtype is None:
            raise ModelError(f"unknown dtype ({path}, {shown(name)} is {tensor.dtype}); convert it")
        nbytes = tensor.numel() * DTYPE_BYTES[dtype]
        yield TensorInfo(name=name, dtype=dtype, shape=tuple(tensor.shape), nbytes=nbytes, path=path)
