"""The numbers of a checkpoint's tensors, a piece at a time: no more than a few megabytes of them are in memory.

N numbers of one piece.
"""

from collections.abc import Iterator
from typing import BinaryIO

import torch
from torch import Tensor

from mmt_cli.checkpoint.header import DTYPE_BYTES, TensorInfo
from mmt_cli.checkpoint.tensors import DTYPES
from mmt_cli.errors import ModelError, shown
from mmt_cli.inspection.contents import Contents

PIECE = 1024 * 1024  # numbers
_EXACT_IN_FLOAT32 = ("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "F32", "F8_E4M3", "F8_E5M2")


def pieces(contents: Contents, info: TensorInfo) -> Iterator[Tensor]:
    """Yield the numbers of a tensor in order, as x_N in the dtype they are stored in.

    Raises:
        ModelError: the file cannot be read any more, or ends too early.
    """
    if contents.pickled is not None:
        yield from torch.split(contents.pickled[info.name].detach().contiguous().view(-1), PIECE)
        return
    assert info.start is not None, info.name
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.start)
            left = info.nbytes
            while left:
                buffer = bytearray(min(left, PIECE * DTYPE_BYTES[info.dtype]))
                _fill(file, memoryview(buffer))
                left -= len(buffer)
                yield torch.frombuffer(buffer, dtype=DTYPES[info.dtype])
    except OSError as error:
        reason = shown(error.strerror or str(error))
        raise ModelError(f"the weights cannot be read ({info.path}, {reason}); try again") from error


def wide(x_N: Tensor, dtype: str) -> Tensor:
    """Return stored numbers as floating-point ones that hold them exactly, integers beyond 2^53 apart."""
    return x_N.to(torch.float32 if dtype in _EXACT_IN_FLOAT32 else torch.float64)


def _fill(file: BinaryIO, target: memoryview) -> None:
    while target:
        count = file.readinto(target)  # type: ignore[attr-defined]  # typeshed: raw files have it
        if not count:
            raise OSError("it ends within a tensor")
        target = target[count:]
