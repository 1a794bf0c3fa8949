"""The header of a safetensors file, read by hand: no torch, no tensor data, and strict.

Format: https://github.com/huggingface/safetensors, 8 bytes of header length (little-endian), a JSON header, the data.
"""

import gc
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmt_cli.checkpoint.files import strict_json
from mmt_cli.errors import ModelError, shown

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_NODES = 4 * MAX_TENSORS  # a tensor takes an object and two lists; brackets in names count as well
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor as its file describes it.

    Attributes:
        name: in the file.
        dtype: in safetensors' spelling.
        shape: of the tensor.
        nbytes: its size in bytes.
        path: the file that holds it.
        start: where in the file its bytes begin; None where a library finds them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    start: int | None = None

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """All tensors of one file in the order of their names, and its metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises:
        ModelError: no regular file, or what `header_length` and `parse_header` refuse.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ModelError(f"the weights are no regular file ({path}, mode {stat.filemode(mode)}); give a file")
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(header_length(file.read(8), path, size))
    except OSError as error:
        raise ModelError(f"the weights cannot be read ({path}, {error.strerror}); check the path") from error
    return parse_header(raw, path, size)


def header_length(first: bytes, path: Path, size: int) -> int:
    """Return how many bytes of JSON follow the first eight.

    Args:
        first: those eight.
        path: what messages call the file.
        size: of the whole file in bytes.

    Raises:
        ModelError: the header is cut or over its bounds.
    """
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(path, f"header of {length} bytes, allowed {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise _broken(path, f"header ends at byte {8 + length}, the file at {size}")
    return length


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage: with 100,000 tensors it would look again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def parse_header(raw: bytes, path: Path, size: int) -> Header:
    """Check a header that has been read, from a disk or from a hub.

    Args:
        raw: its JSON.
        path: the file that it is of.
        size: of the whole file in bytes.

    Raises:
        ModelError: not strict JSON, more than 100,000 tensors, an unknown dtype, or data that overlaps, leaves holes or
            does not end where the file ends.
    """
    nodes = raw.count(b"[") + raw.count(b"{")
    if nodes > MAX_NODES:  # sixteen mebibytes of empty lists would take half a gigabyte
        raise _broken(path, f"{nodes} lists and objects, allowed {MAX_NODES}")
    data = _parse(raw, path)
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, "__metadata__ is no map of strings")
    if len(data) > MAX_TENSORS:
        raise _broken(path, f"{len(data)} tensors, allowed {MAX_TENSORS}")
    start = 8 + len(raw)
    found = [_tensor(name, data[name], path, start) for name in sorted(data)]
    _check_spans(sorted(span for _, span in found), size - start, path)
    return Header(tensors={info.name: info for info, _ in found}, metadata=metadata)


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"broken safetensors file ({str(path)!r}, {what}); fetch or save it again")


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        data = strict_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"header is no strict JSON: {str(error)[:80]}") from error
    if not isinstance(data, dict):
        raise _broken(path, "header is no JSON object")
    return data


def _tensor(name: str, entry: Any, path: Path, data: int) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"entry of {shown(name)} is not dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _broken(path, f"dtype of {shown(name)} is unknown: {shown(dtype)}")
    if not _counts(shape) or len(shape) > 16:
        raise _broken(path, f"shape of {shown(name)} is no list of at most 16 sizes")
    if not _counts(offsets) or len(offsets) != 2:
        raise _broken(path, f"data_offsets of {shown(name)} are no two numbers")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if math.prod(filter(None, shape)) >= 2**63:  # overflows in other readers, even where a size of 0 makes it nothing
        raise _broken(path, f"shape of {shown(name)} is too large: {shown(shape)}")
    if offsets[1] - offsets[0] != nbytes:
        raise _broken(path, f"{shown(name)} holds {offsets[1] - offsets[0]} bytes, its shape needs {nbytes}")
    start = data + offsets[0]
    info = TensorInfo(name=name, dtype=dtype, shape=tuple(shape), nbytes=nbytes, path=path, start=start)
    return info, (offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for n in value:  # noqa: SIM110 — a plain loop takes half the time, and there may be 200,000 lists
        if type(n) is not int or not 0 <= n < 2**63:
            return False
    return True


def _check_spans(spans: list[tuple[int, int]], size: int, path: Path) -> None:
    end = 0
    for start, stop in spans:
        if start != end:
            raise _broken(path, f"data {'overlaps' if start < end else 'leaves a hole'} at byte {start}")
        end = stop
    if end != size:
        raise _broken(path, f"tensors end at data byte {end}, the file at {size}")
