"""What may stand in a `tokenizer.json`: an allow-list of parts, and bounds on what they hold.

Some files make the library panic, run for minutes or end the process (a padding of 2^31, nested `Replace`, a regular
expression that backtracks). So only the parts that the known families use are let through, each with the options
that are known to be harmless; anything else is refused by its name.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmt_cli.errors import shown
from mmt_cli.inputs.tokenizer_charsmap import check_charsmap
from mmt_cli.inputs.tokenizer_require import require

MAX_VOCABULARY = 400_000
MAX_MERGES = 800_000
MAX_ADDED = 20_000
MAX_ID = 1_000_000
MAX_TOKEN_CHARS = 512
_MAX_STEPS = 8  # parts of one Sequence
_MAX_PATTERN_CHARS = 32
# The library tries every end of every start in a word: at most a few seconds for a text of a megabyte.
_MAX_WORD_CHARS = 200

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = " {2,}"  # SentencePiece's extra spaces
# Regular expressions that are known not to backtrack badly.
KNOWN_REGEXES = frozenset([_GPT2, _LLAMA3, QWEN2_REGEX, _SPACES])


Rule = Callable[[Any], bool]


def one_of(*values: object) -> Rule:
    """Return a rule that takes these values only; 1 is not True, 0.0 not False."""
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _text(longest: int, shortest: int = 0) -> Rule:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def _whole(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def _pattern(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    kind, text = next(iter(value.items()))
    return (kind == "String" and _text(_MAX_PATTERN_CHARS, 1)(text)) or (
        kind == "Regex" and isinstance(text, str) and text in KNOWN_REGEXES
    )


def _charsmap(value: Any) -> bool:
    check_charsmap(value)
    return True


_BOOL = one_of(False, True)
_BYTE_LEVEL = {"add_prefix_space": _BOOL, "trim_offsets": _BOOL, "use_regex": _BOOL}
_METASPACE = {
    "replacement": _text(1, 1),
    "add_prefix_space": _BOOL,
    "prepend_scheme": one_of("always", "never", "first"),
    "split": _BOOL,
}
_REPLACE = {"pattern": _pattern, "content": _text(_MAX_PATTERN_CHARS)}
_BEHAVIORS = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

# part of the file → kind → option → rule
_PARTS: dict[str, dict[str, dict[str, Rule]]] = {
    "normalizer": {
        "BertNormalizer": {
            "clean_text": _BOOL,
            "handle_chinese_chars": _BOOL,
            "strip_accents": one_of(None, False, True),
            "lowercase": _BOOL,
        },
        **{kind: {} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
        "Strip": {"strip_left": _BOOL, "strip_right": _BOOL},
        "Prepend": {"prepend": _text(1, 1)},
        "Replace": _REPLACE,
        "Precompiled": {"precompiled_charsmap": _charsmap},
    },
    "pre_tokenizer": {
        **{kind: {} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "Digits": {"individual_digits": _BOOL},
        "Punctuation": {"behavior": _BEHAVIORS},
        "Split": {"pattern": _pattern, "behavior": _BEHAVIORS, "invert": _BOOL},
    },
    "decoder": {
        **{kind: {} for kind in ("ByteFallback", "Fuse")},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "WordPiece": {"prefix": _text(_MAX_PATTERN_CHARS), "cleanup": _BOOL},
        "Replace": _REPLACE,
        # The library's index falls below zero where it strips more at the end than there is.
        "Strip": {"content": _text(1, 1), "start": _whole(0, _MAX_STEPS), "stop": _whole(0, 0)},
    },
}
# Never handed to the library, so what they hold does not matter.
_POST_PROCESSORS = ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "Sequence")
_STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}

_MODELS: dict[str, dict[str, Rule]] = {
    "BPE": {
        "dropout": one_of(None),
        "unk_token": lambda value: value is None or isinstance(value, str),
        "continuing_subword_prefix": one_of(None, ""),
        "end_of_word_suffix": one_of(None, ""),
        "fuse_unk": _BOOL,
        "byte_fallback": _BOOL,
        "ignore_merges": _BOOL,
    },
    "WordPiece": {
        "unk_token": _text(MAX_TOKEN_CHARS, 1),
        "continuing_subword_prefix": _text(_MAX_PATTERN_CHARS),
        "max_input_chars_per_word": _whole(1, _MAX_WORD_CHARS),
    },
    "Unigram": {"unk_id": _whole(0, MAX_ID), "byte_fallback": _BOOL},
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def check_tokenizer(data: Any) -> None:
    """Check the parsed content of a `tokenizer.json`.

    Raises:
        ValueError: names the first part, option or entry that is not allowed.
    """
    require(isinstance(data, dict), "no JSON object", data)
    unknown = sorted(
        set(data) - {*_PARTS, "version", "truncation", "padding", "added_tokens", "post_processor", "model"}
    )
    require(not unknown, "unknown key", unknown[:1])
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        _check_part(part, data.get(part))
    last = data.get("post_processor")
    kind = last.get("type", "") if isinstance(last, dict) else last
    require(last is None or kind in _POST_PROCESSORS, "post_processor of an unknown kind", kind)
    ids = _check_model(data.get("model"))
    _check_added(data.get("added_tokens"), ids)


def _check_part(part: str, value: Any, *, inside: bool = False) -> None:
    """Check a normalizer, pre-tokenizer or decoder; a Sequence may hold single steps only."""
    if value is None and not inside:
        return
    require(isinstance(value, dict), f"{part} is no object", value)
    kind = value.get("type")
    if kind == "Sequence" and not inside:
        key = _STEPS[part]
        require(set(value) == {"type", key}, f"options of {part} Sequence", sorted(set(value)))
        steps = value[key]
        require(isinstance(steps, list) and len(steps) <= _MAX_STEPS, f"steps of {part} (at most {_MAX_STEPS})", steps)
        for step in steps:
            _check_part(part, step, inside=True)
        return
    rules = _PARTS[part].get(kind) if isinstance(kind, str) else None
    require(rules is not None, f"{part} of an unknown kind", kind)
    _check_options(f"{part} {kind}", value, rules or {})
    if kind == "Replace":
        # A text that grows with each of several steps would fill the memory.
        pattern = next(iter(value["pattern"].values()))
        grows = len(value["content"]) > (2 if pattern == _SPACES else len(pattern))
        require(not grows, f"{part} Replace makes the text longer", value["content"])


def _check_options(where: str, options: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for key, value in options.items():
        if key != "type":
            require(key in rules, f"unknown option of {where}", key)
            require(rules[key](value), f"{where} {key} has a value that is not allowed", value)
    # The library fills in options it knows defaults for, and says so where one is missing.
    if "pattern" in rules:
        require("pattern" in options and (where.endswith("Split") or "content" in options), f"{where} lacks", "pattern")


def _check_model(model: Any) -> dict[str, int]:
    """Check the model and return its entries' ids."""
    require(isinstance(model, dict), "model is no object", model)
    kind = model.get("type")
    rules = _MODELS.get(kind) if isinstance(kind, str) else None
    require(rules is not None, "model of an unknown kind", kind)
    _check_options("model", {key: value for key, value in model.items() if key not in ("vocab", "merges")}, rules or {})
    if kind == "Unigram":
        return _check_unigram(model)
    vocabulary = model.get("vocab")
    require(isinstance(vocabulary, dict) and bool(vocabulary), "model.vocab is no object with entries", vocabulary)
    ids: dict[str, int] = model["vocab"]
    _check_ids(ids)
    unknown = model.get("unk_token")
    require(unknown is None or unknown in ids, "model.unk_token is not in the vocabulary", unknown)
    if kind == "WordPiece":
        require("merges" not in model, "unknown option of the model", "merges")
        require(unknown is not None, "model.unk_token is missing", unknown)
    else:
        _check_merges(model.get("merges"), ids)
    return ids


def _check_ids(ids: Mapping[str, Any]) -> None:
    require(len(ids) <= MAX_VOCABULARY, f"more than {MAX_VOCABULARY} entries", len(ids))
    for token, index in ids.items():
        require(type(index) is int and 0 <= index < MAX_ID, f"ids are not from 0 to {MAX_ID - 1}", index)
        require(len(token) <= MAX_TOKEN_CHARS, f"an entry of more than {MAX_TOKEN_CHARS} characters", token)
    require(len(set(ids.values())) == len(ids), "ids that two entries share", len(ids))


def _check_merges(merges: Any, ids: Mapping[str, int]) -> None:
    require(isinstance(merges, list), "model.merges is no list", merges)
    require(len(merges) <= MAX_MERGES, f"more than {MAX_MERGES} merges", len(merges))
    same = len({type(merge) for merge in merges}) < 2
    require(same, "model.merges holds texts as well as pairs", len(merges))
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        fits = isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) and half for half in pair)
        require(fits, "a merge is no pair of texts", merge)
        known = pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids
        require(known, "a merge of unknown entries", merge)


def _check_unigram(model: Mapping[str, Any]) -> dict[str, int]:
    entries = model.get("vocab")
    require(isinstance(entries, list) and bool(entries), "model.vocab is no list with entries", entries)
    pairs: list[Any] = model["vocab"]
    require(len(pairs) <= MAX_VOCABULARY, f"more than {MAX_VOCABULARY} entries", len(pairs))
    for entry in pairs:
        fits = isinstance(entry, list) and len(entry) == 2 and _text(MAX_TOKEN_CHARS, 1)(entry[0])
        fits = fits and type(entry[1]) in (int, float) and math.isfinite(entry[1]) and abs(entry[1]) <= MAX_ID
        require(fits, "an entry is no text with a score", entry)
    ids = {entry[0]: index for index, entry in enumerate(pairs)}
    require(len(ids) == len(pairs), "ids that two entries share", len(ids))
    require(type(model.get("unk_id")) is int and model["unk_id"] < len(ids), "model.unk_id", model.get("unk_id"))
    return ids


def _check_added(added: Any, ids: Mapping[str, int]) -> None:
    """Check added tokens: their ids are their own, or those of the same text in the vocabulary."""
    require(isinstance(added, list), "added_tokens is no list", added)
    require(len(added) <= MAX_ADDED, f"more than {MAX_ADDED} added tokens", len(added))
    taken = {index: token for token, index in ids.items()}
    for token in added:
        check_added_token(token)
        content, index = token["content"], token.get("id")
        same = ids.get(content, index) == index
        require(same, f"the added token {shown(content)} has another id in the vocabulary", index)
        require(type(index) is int and 0 <= index < MAX_ID, f"ids are not from 0 to {MAX_ID - 1}", index)
        owner = taken.setdefault(index, content)
        require(owner == content, f"ids that two entries share, {shown(content)} and {shown(owner)}", index)


def check_added_token(token: Any) -> None:
    """Check one added token's text and flags.

    Raises:
        ValueError: it is no object, without text, or a flag is neither true nor false.
    """
    require(isinstance(token, dict), "an added token is no object", token)
    content = token.get("content")
    require(_text(MAX_TOKEN_CHARS, 1)(content), "an added token without content, or a long one", content)
    for key, value in token.items():
        require(key in ("id", "content", *_FLAGS), f"unknown key of the added token {shown(content)}", key)
        flag = key in ("id", "content") or isinstance(value, bool)
        require(flag, f"{key} of the added token {shown(content)} is neither true nor false", value)


def flags(token: Mapping[str, Any], names: Iterable[str] = _FLAGS) -> dict[str, bool]:
    """Return the flags that an added token states."""
    return {name: token[name] for name in names if name in token}
