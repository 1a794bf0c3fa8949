"""Tokenizers of Hugging Face folders give the ids and the text that transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import (
    AddedToken,
    AutoTokenizer,
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from mmt_cli.errors import ModelError
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.inputs.user_text import UserText

TEXTS = ["A dog runs through the grass .", "Two dogs don't play 2024 .", "USER: what is it ?\nASSISTANT: a café"] * 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "run", "two", "n", "'", "t", ".", ","]
WORDS += ["!", "?", "##n", "cafe", "é", "caf", "##é", "2", "##0", "A", "Dog", "don", "re", "ve", "图", "##g"]


def _bpe(prefix: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Return the vocabulary and merges of a byte-level BPE that begins with these special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=prefix, initial_alphabet=alphabet)
    )
    return _tables(backend)


def _tables(backend: Backend) -> tuple[dict[str, int], list[Any]]:
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _spm(prefix: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Return the vocabulary and merges of a SentencePiece-style BPE with byte fallback."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = [*prefix, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=360, special_tokens=special))
    return _tables(backend)


def _bert(folder: Path) -> str:
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return "git"


def _bert_cased(folder: Path) -> str:
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, do_lower_case=False)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = True
    tokenizer.save_pretrained(folder)
    return "blip"


def _gpt2(folder: Path) -> str:
    vocab, merges = _bpe(["<|endoftext|>"])
    GPT2Tokenizer(vocab=vocab, merges=merges, clean_up_tokenization_spaces=True).save_pretrained(folder)
    return "vision-encoder-decoder"


def _roberta(folder: Path) -> str:
    vocab, merges = _bpe(["<s>", "<pad>", "</s>", "<unk>"])
    mask = AddedToken("<mask>", lstrip=True, special=True)
    RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask, add_prefix_space=True).save_pretrained(folder)
    return "vision-encoder-decoder"


def _florence(folder: Path) -> str:
    vocab, merges = _bpe(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([f"<loc_{index}>" for index in range(20)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    return "florence2"


def _llama(folder: Path) -> str:
    vocab, merges = _spm(["<unk>", "<s>", "</s>"])
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    return "llama"


def _llava_hub(folder: Path) -> str:
    """The layout of the hub: parts of SentencePiece's, a class that transformers does not follow for llava."""
    vocab, merges = _spm(["<unk>", "<s>", "</s>"])
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", image_token="<image>")
    return "llava"


def _qwen2(folder: Path) -> str:
    vocab, merges = _bpe(["<|endoftext|>"])
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>"]})
    tokenizer.save_pretrained(folder)
    return "internvl"


def _qwen2_hub(folder: Path) -> str:
    """The layout of the hub: added tokens in the settings, one of them not marked as special."""
    kind = _qwen2(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    tokens[-1] |= {"special": False, "lstrip": True}
    stated = {str(token.pop("id")): token for token in tokens}
    _edit(folder / "tokenizer_config.json", added_tokens_decoder=stated)
    return kind


def _gemma(folder: Path) -> str:
    vocab, merges = _spm(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([f"<loc{index:04}>" for index in range(20)])
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("<image>", special=True)])
    tokenizer.save_pretrained(folder)
    return "paligemma"


def _smolvlm(folder: Path, kind: str = "TokenizersBackend") -> str:
    vocab, merges = _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<fake_token_around_image>"]})
    tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class=kind)
    return "idefics3"


def _smolvlm_hub(folder: Path) -> str:
    return _smolvlm(folder, "GPT2Tokenizer")


def _llama3(folder: Path) -> str:
    """A class of Llama 2 over bytes."""
    vocab, merges = _bpe(["<|begin_of_text|>", "<|eot_id|>"])
    backend = Backend(models.BPE(vocab, merges, ignore_merges=True))
    known = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(known), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    return "llama"


def _xlm_roberta(folder: Path) -> str:
    """TrOCR small's, saved by transformers."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -1.0 - index / 8) for index, piece in enumerate(["▁a", "▁dog", "▁", "s", "dog", "2", "0", "é"])]
    XLMRobertaTokenizer(vocab=pieces).save_pretrained(folder)
    return "trocr"


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _vocab_txt(folder: Path) -> str:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "new "]) + "\r\n", encoding="utf-8", newline="")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "bos_token": "[DEC]", "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return "blip"


def _vocab_json(folder: Path) -> str:
    """TrOCR's on the hub: vocabulary files, special tokens in a map of their own."""
    vocab, merges = _bpe(["<s>", "<pad>", "</s>", "<unk>"])
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "vocab_file": ".env"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": mask, "pad_token": "<pad>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": len(vocab), "<pad>": 1}))
    return "vision-encoder-decoder"


BUILDERS = [
    _bert,
    _bert_cased,
    _gpt2,
    _roberta,
    _florence,
    _llama,
    _llava_hub,
    _qwen2,
    _qwen2_hub,
    _gemma,
    _smolvlm,
    _smolvlm_hub,
    _llama3,
    _xlm_roberta,
    _vocab_txt,
    _vocab_json,
]
Pair = tuple[Tokenizer, Any]


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda builder: builder.__name__[1:])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("tokenizer") / "folder"
    _config(folder, request.param(folder))
    ours = Tokenizer.from_folder(folder)
    assert ours is not None
    return ours, AutoTokenizer.from_pretrained(folder)


def _config(folder: Path, model_type: str) -> None:
    config: dict[str, Any] = {"model_type": model_type}
    if model_type == "vision-encoder-decoder":
        config |= {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}
    (folder / "config.json").write_text(json.dumps(config))


words = st.sampled_from(
    [
        "a",
        "dog",
        "dogs",
        " ",
        "  ",
        "\n",
        "don't",
        "2024",
        "é",
        "e\u0301",
        "图",
        "😀",
        "▁",
        "##s",
        "<",
        ">",
        "[SEP]",
        "<image>",
        "</s>",
        "<loc0003>",
        "<loc_3>",
        "<|endoftext|>",
        "\t",
        "\0",
        "\x85",
        "it 's",
        "n't .",
        "<mask>",
        " <IMG_CONTEXT>",
        "A",
    ]
)
texts = st.lists(words | st.text(max_size=6), max_size=8).map("".join)
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)


@quick
@given(text=texts)
def test_plain_text_has_the_same_ids(pair: Pair, text: str) -> None:
    ours, theirs = pair
    expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours.encode(text) == expected


@quick
@given(text=texts)
@example(text="a <mask> b")
def test_a_template_has_the_same_ids(pair: Pair, text: str) -> None:
    ours, theirs = pair
    half = len(text) // 2
    assert ours.encode_template([text[:half], text[half:]]) == theirs.encode(text, add_special_tokens=False)


@quick
@given(before=texts, user=st.text(st.sampled_from("ab .'\néA9图")), after=texts)
def test_a_users_text_in_a_template_is_encoded_in_one_go(pair: Pair, before: str, user: str, after: str) -> None:
    ours, theirs = pair
    # What the template leaves open, such as "<loc000", could be closed by nothing that stands here.
    ids = ours.encode_template([before, UserText(user), after])
    assert ids == theirs.encode(before + user + after, add_special_tokens=False)


@quick
@given(data=st.data())
def test_ids_become_the_same_text(pair: Pair, data: st.DataObject) -> None:
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True).strip()
    assert ours.decode([*ids, ours.vocab_size, 2**40, -1]) == ours.decode(ids)


def test_special_tokens_have_the_same_ids(pair: Pair) -> None:
    ours, theirs = pair
    for name in ("bos", "eos", "pad", "cls", "sep", "unk", "mask"):
        assert ours.named_id(f"{name}_token") == getattr(theirs, f"{name}_token_id"), name
    for token in theirs.all_special_tokens:
        assert ours.token_id(token) == theirs.convert_tokens_to_ids(token)
        assert ours.decode([theirs.convert_tokens_to_ids(token)]) == ""
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1


def test_a_user_cannot_smuggle_in_a_special_token(pair: Pair) -> None:
    ours, theirs = pair
    reserved = set(theirs.all_special_ids) - {theirs.unk_token_id}
    for token in theirs.all_special_tokens:
        start, rest = token[:2], token[2:]
        for parts in ([f"a{token}b"], [token], [f"a{start}", rest]):
            users = [UserText(part) for part in parts]
            ids = ours.encode_template(["USER: ", *users, " it"])
            assert not reserved & set(ids), parts
        split = ours.encode_template([start, UserText(rest)])
        assert not reserved & set(split)
        template = ours.encode_template([token, UserText(token)])
        assert template[0] == theirs.convert_tokens_to_ids(token)


def test_a_saved_tokenizer_is_read_by_transformers(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = pair
    ours.save(tmp_path / "tokenizer.json")
    again = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "A dog, 2024<image></s> don't"
    assert again.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    back = Tokenizer.from_folder(tmp_path)
    assert back is not None
    assert back.encode(text) == ours.encode(text)


def test_an_image_token_that_the_file_does_not_mark_as_special_is_guarded(tmp_path: Path) -> None:
    vocab, merges = _bpe(["<|endoftext|>"])
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tmp_path)
    _edit(tmp_path / "tokenizer_config.json", image_token="<image>")
    ours = Tokenizer.from_folder(tmp_path)
    assert ours is not None
    image = ours.named_id("image_token")
    assert image is not None
    ids = ours.encode_template(["<image>", UserText("a <image><image> b"), "<image>"])
    assert [index for index, token in enumerate(ids) if token == image] == [0, len(ids) - 1]


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "sentencepiece.bpe.model"])
def test_sentencepiece_alone_says_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05")
    with pytest.raises(ModelError, match=f"{name} alone.*save it once as tokenizer.json.*--tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_files_are_asked_for_by_the_known_names_only(tmp_path: Path) -> None:
    _vocab_json(tmp_path / "a")
    _edit(tmp_path / "a" / "tokenizer_config.json", merges_file="../secret", tokenizer_file="/etc/passwd")
    asked: list[str] = []

    def read(name: str) -> bytes | None:
        asked.append(name)
        path = tmp_path / "a" / name
        return path.read_bytes() if path.exists() else None

    assert Tokenizer.from_folder(tmp_path / "nowhere", read) is not None
    assert set(asked) <= {"config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"} | {
        "tokenizer.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
    }


def test_missing_special_tokens_are_none_by_name_and_an_error_where_they_are_needed(tmp_path: Path) -> None:
    _gpt2(tmp_path / "a")
    ours = Tokenizer.from_folder(tmp_path / "a")
    assert ours is not None
    assert ours.named_id("pad_token") is None
    assert ours.token_id("nonsense") is None
    assert ours.bos_id == ours.token_id("<|endoftext|>")
    with pytest.raises(ModelError, match="lacks a special token"):
        _ = ours.pad_id
