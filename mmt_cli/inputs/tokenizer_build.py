"""The tokenizer of a Hugging Face folder, as transformers 5 builds it from the same files.

transformers takes the vocabulary, merges and added tokens from the files; the parts around them come from the class
that `tokenizer_class` names, or from `tokenizer.json` where that class has none of its own.
Source: `TokenizersBackend`, `AutoTokenizer` and the models' `tokenization_*.py` of transformers 5.24.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmt_cli.errors import ModelError
from mmt_cli.inputs.tokenizer_classes import CLASSES, TokenizerClass
from mmt_cli.inputs.tokenizer_file import MAX_FILE_BYTES, checked, parse_object, parse_tokenizer, unreadable
from mmt_cli.inputs.tokenizer_require import require
from mmt_cli.inputs.tokenizer_rules import MAX_ADDED, MAX_MERGES, check_added_token

Read = Callable[[str], bytes | None]

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
# Folders of these types name a class that their tokenizer.json does not fit: transformers takes the file as it is.
_FILE_AS_IT_IS = ("llava", "llava_next", "vipllava", "smolvlm", "qwen2")
# The class of a folder that names none.
_CLASS_OF_TYPE = {
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "blip": "BertTokenizer",
    "florence2": "RobertaTokenizer",
    "git": "BertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "internvl": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "trocr": "XLMRobertaTokenizer",
}
_SENTENCEPIECE = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a tokenizer is made of.

    Attributes:
        data: checked content of a `tokenizer.json`.
        added: tokens that come on top, in this order; each with `content` and flags.
        names: the special tokens by their names, `bos_token`, `image_token` and so on; `extra_0` where they have none.
        clean_up: whether decoded text loses the spaces before punctuation.
    """

    data: dict[str, Any]
    added: tuple[Mapping[str, Any], ...]
    names: Mapping[str, str]
    clean_up: bool


def folder_recipe(read: Read, where: str) -> Recipe | None:
    """Return what a folder's tokenizer is made of; None where it holds no tokenizer.

    No file is opened but through `read`, and only under the names that are known here: a path that stands in one of
    the files is nothing but text.

    Args:
        read: returns the bytes of a file of the folder by its name, None where there is none.
        where: what a message calls the folder.

    Raises:
        ModelError: a file is broken or hostile, or holds SentencePiece's own format.
    """
    settings = _optional(read, "tokenizer_config.json", where)
    if "added_tokens_decoder" not in settings:
        settings |= _optional(read, "special_tokens_map.json", where)
    config = _optional(read, "config.json", where)
    file = read("tokenizer.json")
    try:
        kind = _class_of(settings, config, file)
        data = _vocabulary(read, where) if file is None else parse_tokenizer(file, f"{where}/tokenizer.json")
        if data is None:
            return None
        if file is None and kind is None:
            kind = _guess(data)
        names = _names(settings, kind)
        added = [*_added(settings, data, _optional(read, "added_tokens.json", where), names, kind)]
        require(len(added) <= MAX_ADDED, f"more than {MAX_ADDED} added tokens", len(added))
        for token in added:
            check_added_token(token)
        if kind is not None:
            data = checked(kind.rebuilt(data, settings, names), where)
        clean_up = _flag(settings, "clean_up_tokenization_spaces") and (
            data["model"]["type"] != "BPE"
            or _flag(settings, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        )
    except ValueError as error:
        raise unreadable(where, error) from error
    return Recipe(data=data, added=tuple(added), names=names, clean_up=clean_up)


def _optional(read: Read, name: str, where: str) -> dict[str, Any]:
    content = read(name)
    return {} if content is None else parse_object(content, f"{where}/{name}")


def _flag(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name, False)
    require(value is None or isinstance(value, bool), f"{name} is neither true nor false", value)
    return bool(value)


def _class_of(settings: Mapping[str, Any], config: Mapping[str, Any], file: bytes | None) -> TokenizerClass | None:
    """Return the class whose parts replace those of tokenizer.json, None where the file is taken as it is."""
    model = config.get("model_type")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(named, str):
        named = _CLASS_OF_TYPE.get(model, "") if isinstance(model, str) else ""
    named = named.removesuffix("Fast")
    if file is not None:
        # Llama 3 names the class of Llama 2, whose parts do not fit it.
        bytes_for_llama = named == "LlamaTokenizer" and b'"ByteLevel"' in file
        if model in _FILE_AS_IT_IS or bytes_for_llama:
            return None
    return CLASSES.get(named)


def _guess(data: Mapping[str, Any]) -> TokenizerClass:
    """Return the class of vocabulary files that no class is named for."""
    if data["model"]["type"] == "WordPiece":
        return CLASSES["BertTokenizer"]
    return CLASSES["RobertaTokenizer" if "<s>" in data["model"]["vocab"] else "GPT2Tokenizer"]


def _vocabulary(read: Read, where: str) -> dict[str, Any] | None:
    """Return the vocabulary of a folder without tokenizer.json as one, its other parts empty."""
    words, entries, merges = read("vocab.txt"), read("vocab.json"), read("merges.txt")
    model: dict[str, Any]
    if entries is not None and merges is not None:
        pairs = [line for line in _lines(merges) if line and not line.startswith("#version")]
        vocabulary = parse_object(entries, f"{where}/vocab.json", MAX_FILE_BYTES)
        model = {"type": "BPE", "vocab": vocabulary, "merges": pairs}
    elif words is not None:
        model = {"type": "WordPiece", "vocab": {line.rstrip(): index for index, line in enumerate(_lines(words))}}
    else:
        found = next((name for name in _SENTENCEPIECE if read(name) is not None), None)
        if found is not None:
            remedy = "save it once as tokenizer.json with transformers' AutoTokenizer, or give --tokenizer FILE"
            raise ModelError(f"the tokenizer has a format that is not read ({where}, found {found} alone); {remedy}")
        return None
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}


def _lines(content: bytes) -> list[str]:
    require(len(content) <= MAX_FILE_BYTES, f"too large, allowed {MAX_FILE_BYTES} bytes", len(content))
    require(content.count(b"\n") <= MAX_MERGES, f"more than {MAX_MERGES} lines", content.count(b"\n"))
    lines = re.split("\r?\n", content.decode("utf-8"))
    return lines[:-1] if lines[-1] == "" else lines


def _settings_objects(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the special tokens that the settings write as objects, which hold flags."""
    for key, value in settings.items():
        values = value if key in _EXTRA and isinstance(value, list) else [value] if key.endswith("_token") else []
        yield from (token for token in values if isinstance(token, dict) and isinstance(token.get("content"), str))


def _content(value: Any) -> str | None:
    """Return the text of a special token, which is written as a text or as an object."""
    return value.get("content") if isinstance(value, dict) else value


def _names(settings: Mapping[str, Any], kind: TokenizerClass | None) -> dict[str, str]:
    """Return the special tokens by name: the class's own, replaced or taken away by the folder's settings."""
    own: dict[str, Any] = {} if kind is None else dict(kind.names)
    given = {name: settings[name] for name in _NAMED if name in settings}
    # Others, such as image_token, in the order of the file.
    other = {key: value for key, value in settings.items() if key.endswith("_token") and key not in _NAMED}
    extra: Any = next((settings[key] for key in _EXTRA if settings.get(key)), [])
    require(isinstance(extra, list | dict), "extra_special_tokens is neither a list nor an object", extra)
    more = extra if isinstance(extra, dict) else {f"extra_{index}": value for index, value in enumerate(extra)}
    named = {**dict.fromkeys(_NAMED), **own, **given, **other, **more}
    # Settings such as add_bos_token are no tokens.
    named = {name: _content(value) for name, value in named.items() if not isinstance(value, bool) and value}
    for name, token in named.items():
        require(isinstance(token, str), f"{name} is no text", token)
    return {name: str(token) for name, token in named.items()}


def _added(
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    legacy: Mapping[str, Any],
    names: Mapping[str, str],
    kind: TokenizerClass | None,
) -> Iterator[Mapping[str, Any]]:
    """Yield the tokens to add on top: those with ids in their order, then special tokens that none of them holds."""
    numbered: dict[int, Mapping[str, Any]] = {}
    stated = settings.get("added_tokens_decoder")
    if stated is not None:
        require(isinstance(stated, dict), "added_tokens_decoder is no object", stated)
        for index, token in stated.items():
            require(index.isascii() and index.isdigit() and len(index) < 10, "an id of added_tokens_decoder", index)
            require(isinstance(token, dict), "an added token is no object", token)
            numbered[int(index)] = {key: value for key, value in token.items() if key != "__type"}
    else:
        for token, index in legacy.items():
            require(type(index) is int, f"an id of {token[:60]!r} in added_tokens.json", index)
            special = token in names.values()
            numbered[index] = {"content": token, "normalized": not special, "special": special}
        numbered |= {token["id"]: token for token in data["added_tokens"]}
    in_order = [token for _, token in sorted(numbered.items())]
    yield from in_order
    known = {token.get("content") for token in in_order}
    known |= {token["content"] for token in data["added_tokens"]} if kind is None else set()
    objects = {token.get("content"): token for token in _settings_objects(settings)}
    for name in names.values():
        if name not in known:
            stated = {key: value for key, value in objects.get(name, {}).items() if key != "__type"}
            yield {"normalized": False, **stated, "content": name, "special": True}
    if kind is not None and kind.marks_names:
        for name in names.values():
            yield {"content": name, "normalized": False, "special": True}
