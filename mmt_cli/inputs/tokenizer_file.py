"""Reads a tokenizer's files: bounded in size, strict JSON, checked before the library sees them."""

import json
from pathlib import Path
from typing import Any

from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.tokenizer_require import require
from mmt_cli.inputs.tokenizer_rules import check_tokenizer

MAX_FILE_BYTES = 40 * 1024 * 1024  # Gemma's largest has 34
MAX_CONFIG_BYTES = 4 * 1024 * 1024
# A value of two bytes of text may take 60 in memory, one with a key 200: count commas, brackets and colons first.
MAX_NODES = 1_000_000
MAX_VALUES = 1_600_000
MAX_KEYS = 600_000


def read_file(path: Path) -> bytes | None:
    """Return the bytes of a regular file, None where there is none.

    Raises:
        ModelError: it cannot be read, or is larger than any tokenizer's.
    """
    try:
        if not path.is_file():
            return None
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"the tokenizer file is too large ({size} bytes, allowed {MAX_FILE_BYTES}); use another")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer cannot be read ({path}, {str(error)[:160]}); use another file") from error


def parse_tokenizer(content: bytes, where: str) -> dict[str, Any]:
    """Return the checked content of a `tokenizer.json`, without its truncation and padding.

    Args:
        content: the file's bytes.
        where: what a message calls the file.

    Raises:
        ModelError: no strict JSON, too large, or a part, option or entry that is not allowed (named).
    """
    data = parse_object(content, where, MAX_FILE_BYTES)
    return _compact(checked({**data, "truncation": None, "padding": None}, where))


def _compact(data: dict[str, Any]) -> dict[str, Any]:
    """Return the content with merges as one text each where that can be: half a million lists take 100 MB."""
    merges = data["model"].get("merges")
    if not merges or isinstance(merges[0], str) or any(" " in half for pair in merges for half in pair):
        return data
    return {**data, "model": {**data["model"], "merges": [" ".join(pair) for pair in merges]}}


def checked(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` after its check.

    Raises:
        ModelError: a part, option or entry that is not allowed (named).
    """
    try:
        check_tokenizer(data)
    except ValueError as error:
        raise unreadable(where, error) from error
    return data


def parse_object(content: bytes, where: str, most_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        content: the file's bytes.
        where: what a message calls the file.
        most_bytes: refuse more than that.

    Raises:
        ModelError: too large, not UTF-8, no strict JSON (a key twice in one object among it), not an object.
    """
    try:
        require(len(content) <= most_bytes, f"too large, allowed {most_bytes} bytes", len(content))
        nodes, values = content.count(b"[") + content.count(b"{"), content.count(b",")
        require(nodes <= MAX_NODES, f"more than {MAX_NODES} lists and objects", nodes)
        require(values <= MAX_VALUES, f"more than {MAX_VALUES} values", values)
        keys = content.count(b":")
        require(keys <= MAX_KEYS, f"more than {MAX_KEYS} keys", keys)
        data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
        require(isinstance(data, dict), "no JSON object", data)
    except (ValueError, RecursionError) as error:
        raise unreadable(where, error) from error
    result: dict[str, Any] = data
    return result


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return result


def unreadable(where: str, error: BaseException) -> ModelError:
    """Return the error that says why a tokenizer's file cannot be used, on one line."""
    reason = " ".join(str(error).split())[:200]
    return ModelError(f"the tokenizer cannot be read ({where}, {reason}); use another file")
