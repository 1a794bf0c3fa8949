"""Text to ids and back, what a prompt cannot do, and tokenizer files that are broken or hostile."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from mmt_cli.errors import ModelError
from mmt_cli.inputs import tokenizer_file
from mmt_cli.inputs.tokenizer import BOS, EOS, PAD, Tokenizer, train_tokenizer

CAPTIONS = ["A dog runs through the grass .", "Two dogs play in the snow .", "A child in a red coat ."] * 3
TORTURE = Path(os.environ.get("MMT_TEST_DATA", ""), "torture", "tokenizer_bad")
one_tokenizer = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 300)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def written(data: Any) -> Path:
        path = tmp_path / "tokenizer.json"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return path

    return written


@one_tokenizer
@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


@one_tokenizer
@given(text=st.text(st.characters(categories=["Cs", "L", "Cc"])))
def test_bytes_that_are_no_text_become_question_marks(tokenizer: Tokenizer, text: str) -> None:
    expected = "".join("?" if 0xD800 <= ord(c) < 0xE000 else c for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected.strip()


def test_frequent_words_are_one_token_at_the_start_and_later(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("dog")) == 1
    assert tokenizer.encode("dog dog") == tokenizer.encode("dog") * 2
    assert tokenizer.encode("") == []


def test_special_tokens_come_first_and_are_three(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size <= 300


@pytest.mark.parametrize("written", [PAD, BOS, EOS, f"A dog{EOS} runs", f"{BOS}{BOS}", f" {PAD} "])
def test_a_special_token_written_in_a_prompt_is_plain_text(tokenizer: Tokenizer, written: str) -> None:
    ids = tokenizer.encode(written)
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids) == written.strip()


def test_special_tokens_and_unknown_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    dog = tokenizer.encode("dog")
    strange = [-1, tokenizer.vocab_size, 10**6, 2**32, 2**70]
    assert tokenizer.decode([tokenizer.bos_id, *strange, *dog, tokenizer.eos_id, tokenizer.pad_id]) == "dog"


def test_half_a_character_decodes_without_failing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("ü")[:-1]).strip("\ufffd") == ""


def test_a_prompt_of_a_megabyte_is_encoded(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("dog " * 250_000)) == len(tokenizer.encode("dog dog ")) + 249_998


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        again = Tokenizer.load(path)
        assert again.encode(f"A dog {EOS} 🐕") == tokenizer.encode(f"A dog {EOS} 🐕")
        assert again.decode([1, *again.encode("A dog"), 2]) == "A dog"


def test_training_twice_gives_the_same_file() -> None:
    assert train_tokenizer(CAPTIONS, 300).backend.to_str() == train_tokenizer(iter(CAPTIONS), 300).backend.to_str()


def test_truncation_and_padding_in_a_file_are_turned_off(tokenizer: Tokenizer, write: Callable[[Any], Path]) -> None:
    data = json.loads(tokenizer.backend.to_str())
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    data["padding"] = {"strategy": {"Fixed": 2**31}, "direction": "Right", "pad_to_multiple_of": 0}
    data["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": PAD}
    assert Tokenizer.load(write(data)).encode("A dog runs") == tokenizer.encode("A dog runs")


def _changed(tokenizer: Tokenizer, path: str, value: Any) -> Any:
    data = json.loads(tokenizer.backend.to_str())
    node, keys = data, path.split("/")
    for key in keys[:-1]:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(keys[-1]) if isinstance(node, list) else keys[-1]] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}, "Replace"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": None}, "Precompiled"),
        ("normalizer", {"type": []}, "normalizer"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a|a|aa)*c"}}, "Split"),
        ("pre_tokenizer", "ByteLevel", "pre_tokenizer"),
        ("pre_tokenizer/pattern", "x", "pattern"),
        ("pre_tokenizer/use_regex", 3, "use_regex"),
        ("decoder", {"type": "Strip", "content": "a", "start": 10, "stop": 10}, "Strip"),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
        ("model", [], "model"),
        ("model/type", None, "model"),
        ("model/continuing_subword_prefix", "########", "continuing_subword_prefix"),
        ("model/end_of_word_suffix", "x", "end_of_word_suffix"),
        ("model/dropout", 0.5, "dropout"),
        ("model/unk_token", "nonsense", "unk_token"),
        ("model/surprise", 1, "surprise"),
        ("model/vocab", [], "vocab"),
        ("model/vocab/!", 2**32, "ids"),
        ("model/vocab/!", 4, "ids"),
        ("model/vocab/!", -1, "ids"),
        ("model/vocab/!", True, "ids"),
        ("model/vocab/!", None, "ids"),
        ("model/vocab/new", 1_000_000, "ids"),
        ("model/merges", {}, "merges"),
        ("model/merges/0", ["Ġ", "nonsense"], "nonsense"),
        ("model/merges/0", ["ab", "ab"], "ab"),
        ("model/merges/0", ["!"], "merge"),
        ("model/merges/0", ["!", 3], "merge"),
        ("added_tokens", None, "added_tokens"),
        ("added_tokens/0", 3, "added token"),
        ("added_tokens/0/content", "", "content"),
        ("added_tokens/0/content", 7, "content"),
        ("added_tokens/0/id", 5, "<pad>"),
        ("added_tokens/0/id", 1_000_000, "<pad>"),
        ("added_tokens/0/content", "<unseen>", "ids"),
        ("surprise", {}, "surprise"),
        ("version", "9.9", "version"),
    ],
)
def test_what_no_tokenizer_of_ours_holds_is_refused_by_name(
    tokenizer: Tokenizer, write: Callable[[Any], Path], place: str, value: Any, named: str
) -> None:
    with pytest.raises(ModelError, match="tokenizer") as caught:
        Tokenizer.load(write(_changed(tokenizer, place, value)))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_our_special_tokens_is_refused(tokenizer: Tokenizer, write: Callable[[Any], Path]) -> None:
    data = json.loads(tokenizer.backend.to_str().replace(EOS, "</s>"))
    with pytest.raises(ModelError, match="lacks a special token"):
        Tokenizer.load(write(data))


DEEP = b'{"model": ' * 900 + b"1" + b"}" * 900


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"404", b"null", b"{", b"\xff\xfe{\0}\0", b"{}", b"[" * 100_000, DEEP, b"[" + b"[]," * 5_000_000],
    ids=range(10),
)
def test_what_is_no_tokenizer_file_is_refused(write: Callable[[Any], Path], content: bytes) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer.load(write(content))


def test_a_missing_file_a_pipe_and_a_large_file_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "pipe.json", "x" * 300, "/dev/zero"):
        with pytest.raises(ModelError, match="tokenizer"):
            Tokenizer.load(path)
    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(tokenizer_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(ModelError, match="too large"):
        Tokenizer.load(tmp_path)


@pytest.mark.skipif(not TORTURE.is_dir(), reason="MMT_TEST_DATA names no folder with torture files")
@pytest.mark.parametrize("path", sorted(TORTURE.glob("*.json")), ids=lambda path: path.stem)
def test_hostile_files_are_refused_before_the_library_sees_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "from_str", None, raising=False)
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer.load(path)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=3) | st.just("ByteLevel"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(data=st.data())
def test_a_file_changed_anywhere_is_refused_or_works(
    tokenizer: Tokenizer, write: Callable[[Any], Path], data: st.DataObject
) -> None:
    """What passes the check neither panics nor fails later."""
    content = json.loads(tokenizer.backend.to_str())
    for _ in range(data.draw(st.integers(1, 2))):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        action = data.draw(st.sampled_from(["junk", "remove", "repeat"]))
        if action == "junk":
            node[key] = data.draw(junk)
        elif action == "remove":
            del node[key]
        else:
            value = copy.deepcopy(node[key])
            node.append(value) if isinstance(node, list) else node.update({f"{key}x": value})
    try:
        changed = Tokenizer.load(write(content))
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        ids = changed.encode("A dog runs <eos> ü")
        assert all(0 <= index < changed.vocab_size for index in ids)
        changed.decode(range(changed.vocab_size))
