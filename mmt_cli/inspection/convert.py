"""A checkpoint into a new folder: in another dtype, in shards, as safetensors where it was pickled.

Tensors keep the names, shapes and order of the source, and go through memory a piece at a time.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmt_cli.checkpoint.files import WEIGHTS, json_bytes, write_folder
from mmt_cli.checkpoint.folder import CONFIG, INDEX
from mmt_cli.checkpoint.header import DTYPE_BYTES, TensorInfo
from mmt_cli.checkpoint.load import mismatches
from mmt_cli.checkpoint.parts import CARD, GENERATION, PREPROCESSOR, TOKENIZER
from mmt_cli.checkpoint.save_hf import HuggingFaceFolder, config_of
from mmt_cli.checkpoint.tensors import DTYPES, bytes_of
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.inspection.contents import Contents
from mmt_cli.inspection.values import pieces
from mmt_cli.model.transformer import MultimodalTransformer

SaveFormat = Literal["auto", "mmt", "hf"]
_SPELLED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_MAX_FILE_BYTES = 64 * 1024 * 1024  # of a file beside the weights


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """How a checkpoint is written.

    Attributes:
        folder: where to; new or empty.
        format: ours, Hugging Face's, or that of the source.
        dtype: of the numbers; `auto` leaves them as they are.
        shard_size: bytes that one file holds at most, but for a single larger tensor; None writes one file.
        only_safetensors: the weights alone, without config, tokenizer and the like.
    """

    folder: Path
    format: SaveFormat = "auto"
    dtype: str = "auto"
    shard_size: int | None = None
    only_safetensors: bool = False


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A tensor to be written, and the dtype that it gets."""

    info: TensorInfo
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.info.parameters * DTYPE_BYTES[self.dtype]


def save(contents: Contents, options: SaveOptions) -> list[tuple[str, int]]:
    """Write a checkpoint into a new folder, whole or not at all.

    Args:
        contents: of the source, its weights at hand.
        options: how.

    Returns:
        The names of the files and their sizes in bytes.

    Raises:
        UsageError: the folder is not empty or cannot be written, the source is a preset or of another format than
            asked for, or only its tensors are known and more than those are wanted.
        ModelError: weights and config do not fit, a file cannot be read, or a number is too large for the dtype.
    """
    _check(contents, options)
    shards = _shards(_planned(contents, options.dtype), options.shard_size)
    writers = {} if options.only_safetensors else _beside(contents, options.dtype)
    metadata = {**contents.metadata, "format": "pt"}
    for name, shard in shards.items():
        writers[name] = partial(_write, contents=contents, tensors=shard, metadata=metadata)
    if len(shards) > 1:
        writers[WEIGHTS + INDEX] = partial(Path.write_bytes, data=json_bytes(_index(shards)))
    try:
        with contextlib.suppress(OSError):  # an empty folder gives way to the whole one, unless a disk is mounted there
            options.folder.rmdir()
        write_folder(options.folder, writers)
        return [(name, (options.folder / name).stat().st_size) for name in writers]
    except OSError as error:
        reason = f"{shown(str(options.folder))}, {error.strerror}"
        raise UsageError(f"the checkpoint cannot be written ({reason}); make room or choose another --save") from error


def _check(contents: Contents, options: SaveOptions) -> None:
    """Refuse before anything is written."""
    contents.need_weights("--save")
    folder = options.folder
    with contextlib.suppress(FileNotFoundError):
        try:
            taken = not folder.is_dir() or any(folder.iterdir())
        except NotADirectoryError:
            taken = True
        if taken and (folder.exists() or folder.is_symlink()):
            raise UsageError(f"--save names what is there already ({shown(str(folder))}); choose a new folder")
    source = contents.source
    if source is None:
        if not options.only_safetensors:
            raise UsageError(
                f"only tensors are known of this model ({shown(contents.name)}, no family of ours); "
                "add --only-safetensors to write them alone"
            )
        return
    family = f"model {shown(contents.name)} of family {source.family.name}"
    if source.family.native and options.format == "hf":
        raise UsageError(f"no Hugging Face family has this model (--save-format hf, {family}); leave it out")
    if not source.family.native and options.format == "mmt":
        raise UsageError(
            f"our format does not hold how this family is prompted (--save-format mmt, {family}); "
            "leave it out, and the result is a Hugging Face folder"
        )
    with torch.device("meta"):
        state = MultimodalTransformer(source.config).own_state()
    for name, what in mismatches(source, state):
        raise ModelError(f"weights and config do not fit ({shown(name)} {what}); see --check for all of it")


def _planned(contents: Contents, dtype: str) -> list[_Piece]:
    """Return all tensors of the files with their new dtypes, those that no model of ours reads among them."""
    source = contents.source
    infos = [info for _, info in contents.tensors] if source is None else list(source.infos.values())
    # As `save_checkpoint` does it: norms and biases take little room and stay as exact as they can be.
    keeps_vectors = source is not None and source.family.native
    planned = []
    for info in infos:
        given = "F32" if keeps_vectors and len(info.shape) < 2 else _SPELLED.get(dtype, info.dtype)
        new = given if dtype != "auto" and DTYPES[info.dtype].is_floating_point else info.dtype
        planned.append(_Piece(info=info, dtype=new))
    return planned


def _shards(tensors: Sequence[_Piece], size: int | None) -> dict[str, list[_Piece]]:
    """Return the files of the weights, each filled before the next is begun."""
    groups: list[list[_Piece]] = [[]]
    room = size
    for tensor in tensors:
        if room is not None and size is not None:
            if tensor.nbytes > room and groups[-1]:
                groups.append([])
                room = size
            room -= tensor.nbytes
        groups[-1].append(tensor)
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    stem, ending = WEIGHTS.rsplit(".", 1)
    return {f"{stem}-{i:05}-of-{len(groups):05}.{ending}": group for i, group in enumerate(groups, 1)}


def _index(shards: Mapping[str, Sequence[_Piece]]) -> dict[str, Any]:
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    places = {tensor.info.name: name for name, shard in shards.items() for tensor in shard}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _beside(contents: Contents, dtype: str) -> dict[str, Callable[[Path], object]]:
    """Return what writes the files beside the weights."""
    source = contents.source
    assert source is not None
    if source.family.native:
        names: Sequence[str] = (CONFIG, PREPROCESSOR, GENERATION, TOKENIZER, CARD)
        found = {name: source.folder.read_bytes(name, _MAX_FILE_BYTES) for name in names}
    else:
        config = source.raw_config if dtype == "auto" else config_of(source.raw_config, getattr(torch, dtype))
        found = {CONFIG: json_bytes(config), CARD: source.folder.read_bytes(CARD, _MAX_FILE_BYTES)}
        found |= HuggingFaceFolder(source).files
    return {name: partial(Path.write_bytes, data=data) for name, data in found.items() if data is not None}


def _write(path: Path, *, contents: Contents, tensors: Sequence[_Piece], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file: https://github.com/huggingface/safetensors#format."""
    # As the library orders them: the widest numbers first, so that all stand at multiples of their size.
    ordered = sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.info.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.info.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.info.shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in ordered:
            for piece_N in pieces(contents, tensor.info):
                converted_N = _converted(piece_N, tensor)  # held here: what `bytes_of` gives does not hold it
                file.write(bytes_of(converted_N))


def _converted(piece_N: Tensor, tensor: _Piece) -> Tensor:
    wanted = DTYPES[tensor.dtype]
    if piece_N.dtype == wanted:
        return piece_N.contiguous()
    found_N = piece_N.to(wanted)
    if bool((torch.isinf(found_N) & torch.isfinite(piece_N.double())).any()):
        largest = float(piece_N.double().abs().nan_to_num(posinf=0).max())
        both = f"{shown(tensor.info.name)} holds {largest:.3g}, {wanted} ends at {torch.finfo(wanted).max:.3g}"
        raise ModelError(f"a number is too large for the dtype ({both}); use bfloat16 or float32")
    return found_N
