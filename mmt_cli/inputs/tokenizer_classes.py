"""The parts that transformers' tokenizer classes put around a vocabulary, as `tokenizer.json` spells them.

Source: `models/*/tokenization_*.py` of transformers 5.24.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmt_cli.inputs.tokenizer_require import require
from mmt_cli.inputs.tokenizer_rules import QWEN2_REGEX

Settings = Mapping[str, Any]
Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TokenizerClass:
    """One of transformers' classes.

    Attributes:
        model: kind of the model that its vocabulary is for.
        names: special tokens it has where the folder names none.
        parts: returns the parts and the model's options, given the folder's settings and special tokens.
        keeps_charsmap: whether its normalizer is the table of characters that tokenizer.json holds.
        marks_names: whether it marks all named tokens as special once more, over what the files say of them.
    """

    model: str
    names: Mapping[str, str]
    parts: Callable[[Settings, Mapping[str, str]], Part]
    keeps_charsmap: bool = False
    marks_names: bool = False

    def rebuilt(self, data: Mapping[str, Any], settings: Settings, names: Mapping[str, str]) -> Part:
        """Return the content of a `tokenizer.json` with the vocabulary of `data` and this class's parts.

        Raises:
            ValueError: the vocabulary is for another kind of model, or a setting has another type.
        """
        found = data["model"]["type"]
        require(found == self.model, f"the tokenizer class has a {self.model} model, tokenizer.json another", found)
        parts = self.parts(settings, names)
        tables = {key: data["model"][key] for key in ("vocab", "merges") if key in data["model"]}
        if self.keeps_charsmap:
            parts["normalizer"] = _charsmap(data.get("normalizer"))
        return {**data, **parts, "added_tokens": [], "model": {"type": self.model, **parts["model"], **tables}}


def _charsmap(normalizer: Part | None) -> Part | None:
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    return next((step for step in steps if step["type"] == "Precompiled"), None)


def _flag(settings: Settings, name: str, default: bool | None) -> bool | None:
    value = settings.get(name, default)
    require(value is None or isinstance(value, bool), f"{name} is neither true nor false", value)
    return default if value is None else bool(value)


def _bert(settings: Settings, names: Mapping[str, str]) -> Part:
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": _flag(settings, "tokenize_chinese_chars", True),
            "strip_accents": _flag(settings, "strip_accents", None),
            "lowercase": _flag(settings, "do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "unk_token": names.get("unk_token"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }


def _byte_level(*, prefix_space: bool | None, use_regex: bool = True) -> Part:
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": use_regex}


def _bpe(*, unknown: str | None = None, fuse: bool = False, fallback: bool = False) -> Part:
    return {
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None if fuse else "",
        "end_of_word_suffix": None if fuse else "",
        "fuse_unk": fuse,
        "byte_fallback": fallback,
        "ignore_merges": False,
    }


def _gpt2(settings: Settings, names: Mapping[str, str]) -> Part:
    return {
        "normalizer": None,
        "pre_tokenizer": _byte_level(prefix_space=_flag(settings, "add_prefix_space", False)),
        "decoder": _byte_level(prefix_space=True),
        "model": _bpe(),
    }


def _qwen2(settings: Settings, names: Mapping[str, str]) -> Part:
    split = {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False}
    to_bytes = _byte_level(prefix_space=_flag(settings, "add_prefix_space", False), use_regex=False)
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": _byte_level(prefix_space=True),
        "model": _bpe(),
    }


def _decoder(*steps: Part) -> Part:
    """Return SentencePiece's way back: the block is a space, `<0x41>` a byte."""
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}, *steps]}


def _llama(settings: Settings, names: Mapping[str, str]) -> Part:
    prefix = _flag(settings, "add_prefix_space", True)
    scheme = ("always" if _flag(settings, "legacy", False) else "first") if prefix else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": _decoder(*strip),
        "model": _bpe(fuse=True, fallback=True),
    }


def _gemma(settings: Settings, names: Mapping[str, str]) -> Part:
    space = {"String": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": _decoder(),
        "model": _bpe(unknown=names.get("unk_token"), fuse=True, fallback=True),
    }


def _xlm_roberta(settings: Settings, names: Mapping[str, str]) -> Part:
    scheme = "always" if _flag(settings, "add_prefix_space", True) else "never"
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "decoder": space,
        "model": {"unk_id": 3, "byte_fallback": False},
    }


_BERT_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_END = "<|endoftext|>"
_GEMMA_NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA = TokenizerClass(model="BPE", names=_ROBERTA_NAMES, parts=_gpt2)
CLASSES = {
    "BartTokenizer": _ROBERTA,
    "BertTokenizer": TokenizerClass(model="WordPiece", names=_BERT_NAMES, parts=_bert),
    "GemmaTokenizer": TokenizerClass(model="BPE", names=_GEMMA_NAMES, parts=_gemma),
    "GPT2Tokenizer": TokenizerClass(
        model="BPE", names={"bos_token": _END, "eos_token": _END, "unk_token": _END}, parts=_gpt2
    ),
    "LlamaTokenizer": TokenizerClass(
        model="BPE", names={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, parts=_llama
    ),
    "Qwen2Tokenizer": TokenizerClass(
        model="BPE", names={"eos_token": _END, "unk_token": _END, "pad_token": _END}, parts=_qwen2, marks_names=True
    ),
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": TokenizerClass(
        model="Unigram", names=_ROBERTA_NAMES, parts=_xlm_roberta, keeps_charsmap=True
    ),
}
