"""Tokenizer files of other projects: what would hurt is refused by name, whatever else is let through works."""

import base64
import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from mmt_cli.errors import ModelError
from mmt_cli.inputs import tokenizer_file
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.inputs.user_text import UserText

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
EMPTY: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
SPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def _added(*contents: str, start: int) -> list[dict[str, Any]]:
    return [{"id": start + index, "content": content, **FLAGS} for index, content in enumerate(contents)]


def _wordpiece() -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "run", "."]
    return {
        **EMPTY,
        "added_tokens": _added("[PAD]", "[UNK]", "[CLS]", "[SEP]", start=0),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(words)},
        },
    }


def _llama() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁adogs", "do", "dog", "▁a"]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        **EMPTY,
        "added_tokens": _added("<unk>", "<s>", "</s>", start=0) + _added("<image>", "<loc>", start=len(pieces)),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": ["d o", "do g", "▁ a"],
        },
    }


def charsmap(replacements: dict[str, str]) -> str:
    """Return the table of a `Precompiled` normalizer that replaces single ASCII characters."""
    units, texts = [0] * 1024, b""
    units[0] = 256 << 10  # the root's children are around 256
    for index, (char, text) in enumerate(replacements.items(), 1):
        place, below = 256 ^ ord(char), 512 + index
        units[place] = (place ^ below) << 10 | 1 << 8 | ord(char)
        units[below] = 1 << 31 | len(texts)
        texts += text.encode() + b"\0"
    return base64.b64encode(struct.pack("<I1024I", 4096, *units) + texts).decode()


def _unigram() -> dict[str, Any]:
    pieces = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -1.0], ["▁dog", -2.5], ["s", -3]]
    return {
        **EMPTY,
        "added_tokens": _added("<s>", "<pad>", "</s>", "<unk>", start=0),
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap({"A": "a", "x": "dog"})},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, copy.copy(SPACE)]},
        "decoder": copy.copy(SPACE),
        "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": False, "vocab": pieces},
    }


FILES = {"wordpiece": _wordpiece, "llama": _llama, "unigram": _unigram}


def _load(folder: Path, content: Any) -> Tokenizer:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def _changed(kind: str, place: str, value: Any) -> Any:
    data = FILES[kind]()
    node: Any = data
    keys = place.split("/")
    for key in keys[:-1]:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(keys[-1]) if isinstance(node, list) else keys[-1]] = value
    return data


@pytest.mark.parametrize("kind", FILES)
def test_the_files_that_are_changed_below_work(tmp_path: Path, kind: str) -> None:
    tokenizer = _load(tmp_path, FILES[kind]())
    assert tokenizer.decode(tokenizer.encode("a dogs")) == "a dogs"


def test_a_table_of_characters_is_followed(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path, _unigram())
    assert tokenizer.decode(tokenizer.encode("A x")) == "a dog"


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"}
REDOS = {"type": "Split", "pattern": {"Regex": "(a|a|aa)*c"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("kind", "place", "value", "named"),
    [
        ("wordpiece", "model/max_input_chars_per_word", 0, "max_input_chars_per_word"),
        ("wordpiece", "model/max_input_chars_per_word", 10**6, "max_input_chars_per_word"),
        ("wordpiece", "model/max_input_chars_per_word", True, "max_input_chars_per_word"),
        ("wordpiece", "model/unk_token", "[XXX]", "unk_token"),
        ("wordpiece", "model/vocab", {}, "vocab"),
        ("wordpiece", "model/vocab/a", 5, "ids"),
        ("wordpiece", "model/vocab/a", 2**32 - 1, "ids"),
        ("wordpiece", "model/vocab/a", 1_000_000, "ids"),
        ("wordpiece", "model/merges", [], "merges"),
        ("wordpiece", "model/type", "WordLevel", "WordLevel"),
        ("wordpiece", "added_tokens/0/id", 4, "[PAD]"),
        ("wordpiece", "added_tokens/0/content", "", "content"),
        ("wordpiece", "added_tokens/0/content", "x" * 1000, "content"),
        ("wordpiece", "added_tokens/0/lstrip", 1, "lstrip"),
        ("wordpiece", "added_tokens/0/surprise", 1, "surprise"),
        ("wordpiece", "normalizer", REPLACE, "longer"),
        ("wordpiece", "normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 8}, "longer"),
        ("wordpiece", "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9}, "steps"),
        ("wordpiece", "normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}, "Sequence"),
        ("wordpiece", "normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": ""}, "pattern"),
        ("wordpiece", "normalizer", {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}, "pattern"),
        ("wordpiece", "normalizer", {"type": "Replace", "content": ""}, "pattern"),
        ("wordpiece", "normalizer", {"type": "Precompiled", "precompiled_charsmap": None}, "Precompiled"),
        ("wordpiece", "normalizer", {"type": "Precompiled"}, "Precompiled"),
        ("wordpiece", "normalizer/lowercase", 3, "lowercase"),
        ("wordpiece", "pre_tokenizer", REDOS, "pattern"),
        ("wordpiece", "pre_tokenizer", {"type": "UnicodeScripts"}, "UnicodeScripts"),
        ("wordpiece", "post_processor", {"type": "Evil"}, "Evil"),
        ("wordpiece", "decoder", {"type": "CTC"}, "CTC"),
        ("llama", "decoder/decoders/3/start", 10, "start"),
        ("llama", "decoder/decoders/3/stop", 1, "stop"),
        ("llama", "decoder/decoders/3/content", "  ", "content"),
        ("llama", "decoder/decoders/0/content", "x" * 40, "content"),
        ("llama", "model/dropout", 0.5, "dropout"),
        ("llama", "model/continuing_subword_prefix", "########", "continuing_subword_prefix"),
        ("llama", "model/end_of_word_suffix", "x", "end_of_word_suffix"),
        ("llama", "model/merges/0", "d o g", "merge"),
        ("llama", "model/merges/0", "dog dog", "merge"),
        ("llama", "model/merges/0", ["d", "o"], "merges"),
        ("llama", "model/merges", [["", "dog"]], "merge"),
        ("llama", "model/merges", [["d", "o", "g"]], "merge"),
        ("llama", "model/fuse_unk", 0, "fuse_unk"),
        ("llama", "model/vocab/dog", [], "ids"),
        ("llama", "added_tokens/3/id", 1_000_000, "ids"),
        ("llama", "added_tokens/3/id", 2**64, "ids"),
        ("llama", "added_tokens/3/id", 5, "<image>"),
        ("unigram", "model/vocab", [], "vocab"),
        ("unigram", "model/unk_id", 7, "unk_id"),
        ("unigram", "model/unk_id", None, "unk_id"),
        ("unigram", "model/vocab/4", ["▁a"], "score"),
        ("unigram", "model/vocab/4", ["", -1.0], "score"),
        ("unigram", "model/vocab/4/1", float("nan"), "score"),
        ("unigram", "model/vocab/4/1", float("-inf"), "score"),
        ("unigram", "model/vocab/4/0", "s", "ids"),
        ("unigram", "normalizer/precompiled_charsmap", "####", "base64"),
        ("unigram", "normalizer/precompiled_charsmap", "", "cut short"),
        ("unigram", "normalizer/precompiled_charsmap", charsmap({"A": "a"})[:-800], "cut short"),
        ("unigram", "normalizer/precompiled_charsmap", charsmap({"A": "a" * 65}), "too long"),
    ],
)
def test_what_would_hurt_is_refused_by_name(tmp_path: Path, kind: str, place: str, value: Any, named: str) -> None:
    with pytest.raises(ModelError, match="tokenizer") as caught:
        _load(tmp_path, _changed(kind, place, value))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("wordpiece", "padding", {"strategy": {"Fixed": 2**31}, "pad_to_multiple_of": 0}),
        ("wordpiece", "truncation", {"max_length": 2, "stride": 5}),
        ("wordpiece", "post_processor", {"type": "TemplateProcessing", "single": [], "pair": 3}),
        ("wordpiece", "model/vocab/far", 999_999),
        ("llama", "added_tokens/3/id", 4_000),
        ("llama", "model/unk_token", None),
    ],
)
def test_what_does_no_harm_is_taken(tmp_path: Path, kind: str, place: str, value: Any) -> None:
    plain = _load(tmp_path, FILES[kind]())
    assert _load(tmp_path, _changed(kind, place, value)).encode("a dogs") == plain.encode("a dogs")


@pytest.mark.parametrize(
    "content",
    [b"[]", b"404", b"", b"{", b'{"model": 1, "model": 2}', b'{"a": "\xff"}', b'{"model": {"vocab": ' * 5_000],
    ids=range(7),
)
def test_what_is_no_strict_json_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json", "config.json", "special_tokens_map.json"):
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / "merges.txt").write_text("a b\n")
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("limit", ["MAX_NODES", "MAX_VALUES", "MAX_KEYS", "MAX_FILE_BYTES"])
def test_a_file_with_too_much_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(tokenizer_file, limit, 3)
    with pytest.raises(ModelError, match=r"allowed 3|more than 3"):
        _load(tmp_path, _llama())


def test_a_panic_of_the_library_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(content: str) -> Backend:
        raise PanicException("index out\nof bounds")

    class Panicking:
        from_str = staticmethod(panic)

    monkeypatch.setattr("mmt_cli.inputs.tokenizer.Backend", Panicking)
    with pytest.raises(ModelError, match="out") as caught:
        _load(tmp_path, _llama())
    assert "\n" not in str(caught.value)


def test_a_prompt_full_of_special_tokens_is_encoded(tmp_path: Path) -> None:
    data = _llama()
    data["added_tokens"][3]["special"] = False
    (tmp_path / "tokenizer_config.json").write_text('{"image_token": "<image>"}')
    tokenizer = _load(tmp_path, data)
    ids = tokenizer.encode_template([UserText("<image>" * 20_000 + "</s>")])
    assert tokenizer.token_id("<image>") not in ids
    assert tokenizer.token_id("</s>") not in ids


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 3, 300, 2**31, 2**64, 0.5, "", " ", "a", "Ġ", "▁", "\ud800", "##", "<unk>", "é"])
    | st.sampled_from(["ByteLevel", "Strip", "Sequence", "Metaspace", "BPE", "Unigram", "WordPiece", "Fuse", "NFKD"])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "content", "pattern", "String", "id"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=250, deadline=None)
@given(kind=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_file_changed_anywhere_is_refused_or_works(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = FILES[kind]()
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = content
        while True:
            key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        action = data.draw(st.sampled_from(["junk", "junk", "remove", "repeat"]))
        if action == "junk":
            node[key] = data.draw(junk)
        elif action == "remove" and len(node) > 1:
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
    try:
        changed = _load(tmp_path, content)
    except ModelError as error:
        assert "\n" not in str(error)
        return
    text = "A dogs <unk>[SEP] ü\0▁ \u3000 <image>  " + "a" * 300
    for ids in (changed.encode(text), changed.encode_template(["<s>", UserText(text)])):
        assert all(0 <= index < changed.vocab_size for index in ids)
    changed.decode(range(changed.vocab_size))
    changed.decode([0] * 20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(name=st.sampled_from(["tokenizer_config", "special_tokens_map", "added_tokens", "config"]), data=st.data())
def test_settings_of_any_kind_are_refused_or_work(tmp_path: Path, name: str, data: st.DataObject) -> None:
    keys = [
        "tokenizer_class",
        "bos_token",
        "unk_token",
        "added_tokens_decoder",
        "extra_special_tokens",
        "do_lower_case",
    ]
    keys += ["clean_up_tokenization_spaces", "add_prefix_space", "image_token", "model_type", "7"]
    values = junk | st.sampled_from(["BertTokenizer", "LlamaTokenizer", "git", "llava", {"7": {"content": "<x>"}}])
    content = data.draw(st.dictionaries(st.sampled_from(keys), values, max_size=4))
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    try:
        tokenizer = _load(tmp_path, FILES[data.draw(st.sampled_from(sorted(FILES)))]())
    except ModelError as error:
        assert "\n" not in str(error)
        return
    tokenizer.decode(tokenizer.encode_template(["<s> a", UserText("dogs </s>")]))


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 4110), st.integers(0, 255)), max_size=30))
def test_a_table_of_characters_changed_anywhere_is_refused_or_works(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    table = bytearray(base64.b64decode(charsmap({"A": "é", "x": "dog"})))
    for place, value in changes:
        table[place % len(table)] = value
    folder = tmp_path_factory.mktemp("table")
    try:
        changed = _changed("unigram", "normalizer/precompiled_charsmap", base64.b64encode(table).decode())
        tokenizer = _load(folder, changed)
    except ModelError:
        return
    tokenizer.encode("".join(map(chr, range(1, 600))))
