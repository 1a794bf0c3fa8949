"""Checks a `tokenizer.json` before the library sees it: some files make it panic, run for minutes or end the process.

Only what a byte-level BPE of ours needs is allowed; anything else is refused by its name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmt_cli.errors import ModelError, shown

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 300_000
MAX_NODES = 2 * MAX_ENTRIES  # a merge takes a list; brackets in entries count as well

# Kinds of each part that may stand in a file; None is a part that is absent.
_KINDS: dict[str, tuple[str | None, ...]] = {
    "normalizer": (None,),
    "pre_tokenizer": ("ByteLevel",),
    "post_processor": (None, "ByteLevel"),
    "decoder": ("ByteLevel",),
    "model": ("BPE",),
}
_BYTE_LEVEL_OPTIONS = {"type", "add_prefix_space", "trim_offsets", "use_regex"}
# The model's options besides its tables, and the values that leave it a plain and repeatable BPE.
_MODEL_OPTIONS: dict[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False, True),
}


def read_tokenizer_file(path: Path) -> str:
    """Return the checked JSON of a tokenizer file, without its truncation and padding.

    Raises:
        ModelError: no such regular file, too large, no JSON, a part or option that is not allowed (named), ids that
            are not 0, 1, 2 … without gaps, merges of unknown entries.
    """
    try:
        if not path.is_file():
            raise ModelError(f"no tokenizer ({path}, found no such file); give --tokenizer FILE or DIR")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"the tokenizer file is too large ({size} bytes, allowed {MAX_FILE_BYTES}); use another")
        content = path.read_text(encoding="utf-8")
        nodes = content.count("[") + content.count("{")
        _require(nodes <= MAX_NODES, f"more than {MAX_NODES} lists and objects", nodes)
        data = json.loads(content)
        _check(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the tokenizer cannot be read ({path}, {str(error)[:160]}); use another file") from error
    return json.dumps({**data, "truncation": None, "padding": None})


def _check(data: Any) -> None:
    _require(isinstance(data, dict), "no JSON object", data)
    unknown = sorted(set(data) - {*_KINDS, "version", "truncation", "padding", "added_tokens"})
    _require(not unknown, "unknown key", unknown[:1])
    for part, kinds in _KINDS.items():
        value = data.get(part)
        _require(value is None or isinstance(value, dict), f"{part} is no object", value)
        kind = None if value is None else value.get("type", "")
        _require(kind in kinds, f"{part} of an unknown kind", kind)
        if kind == "ByteLevel":
            _check_byte_level(part, value)
    vocabulary = _check_model(data["model"])
    _check_added(data.get("added_tokens"), vocabulary)


def _check_byte_level(part: str, options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        _require(key in _BYTE_LEVEL_OPTIONS, f"unknown option of {part}", key)
        _require(key == "type" or isinstance(value, bool), f"{part}.{key} is neither true nor false", value)


def _check_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vocabulary, whose ids are not checked yet."""
    for key, value in model.items():
        if key not in ("vocab", "merges"):
            _require(key in _MODEL_OPTIONS, "unknown option of the model", key)
            _require(value in _MODEL_OPTIONS[key], f"model.{key} has a value that is not allowed", value)
    vocabulary: dict[str, Any] = model.get("vocab", {})
    merges: Any = model.get("merges")
    _require(isinstance(vocabulary, dict), "model.vocab is no object", vocabulary)
    _require(isinstance(merges, list), "model.merges is no list", merges)
    _require(max(len(vocabulary), len(merges)) <= MAX_ENTRIES, f"more than {MAX_ENTRIES} entries", len(vocabulary))
    for merge in merges:
        fits = isinstance(merge, list) and len(merge) == 2 and all(isinstance(half, str) for half in merge)
        _require(fits, "a merge is no pair of texts", merge)
        _require(all(text in vocabulary for text in (*merge, "".join(merge))), "a merge of unknown entries", merge)
    return vocabulary


def _check_added(added: Any, vocabulary: Mapping[str, Any]) -> None:
    """Check the added tokens, and that they and the vocabulary share the ids 0, 1, 2 … without gaps."""
    _require(isinstance(added, list), "added_tokens is no list", added)
    ids = dict(vocabulary)
    for token in added:
        _require(isinstance(token, dict), "an added token is no object", token)
        content, index = token.get("content"), token.get("id")
        _require(isinstance(content, str) and content != "", "an added token without content", content)
        _require(ids.setdefault(content, index) == index, f"the added token {shown(content)} has another id", index)
    plain = all(type(index) is int for index in ids.values())
    gaps = not plain or sorted(ids.values()) != list(range(len(ids)))
    _require(not gaps, f"ids are not 0 to {len(ids) - 1}, each once", max(ids.values()) if plain and ids else None)


def _require(holds: bool, what: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{what}: {shown(found)}")
