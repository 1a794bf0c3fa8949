"""Files of a checkpoint folder: JSON in, JSON and tensors out, never half there."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmt_cli.errors import shown

WEIGHTS = "model.safetensors"
MAX_JSON_BYTES = 1024 * 1024


def strict_json(text: str) -> Any:
    """Return the JSON value in `text`.

    Raises:
        ValueError: no JSON, a key twice in one object, or a lone surrogate, which UTF-8 cannot hold.
        RecursionError: nested too deeply.
    """
    data = json.loads(text, object_pairs_hook=_unique)
    if "\\u" in text:  # only an escape can make a lone surrogate
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # fails on one
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} stands there twice")
        result[key] = value
    return result


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """Return indented JSON with a closing newline, as our folders hold it."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_folder(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files into a folder so that no reader finds one of them cut short.

    A new folder is made under a temporary name and renamed, so it is there whole or not at all. In one that exists, all
    files are complete on the disk, inside of it since it may be a disk of its own, before the first is renamed over its
    predecessor, in the given order (name the weights last): a kill between two renames leaves some files old and some
    new. Files not named stay as they are.
    """
    import shutil  # both take longer to import than a header takes to read
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    within = folder if folder.exists() else folder.parent
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=within))
    try:
        temporary.chmod(0o755)
        for name, write in writers.items():
            write(temporary / name)
            (temporary / name).chmod(0o644)  # safetensors keeps its files to their owner
            _flush(temporary / name)
        _flush(temporary)
        if folder.exists():
            for name in writers:
                (temporary / name).replace(folder / name)
            _flush(folder)
        else:
            temporary.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
