"""Text that is handed out while it is written is the text of the caption, whatever the tokenizer."""

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmt_cli import Captioner
from mmt_cli.captioning.author import Caption
from mmt_cli.captioning.stream import GrowingText, stepwise
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.inputs.tokenizer_build import Recipe
from mmt_cli.model.presets import preset

TEXTS = [
    "A dog runs through the grass .",
    "Two cafés — naïve 図書館 in snow !",
    "It doesn't, I'm sure; we've 'dogs'.",
]
TEXTS *= 4
PIECES = ["[PAD]", "a", "do", "##g", "n", "'", "t", "##'", "##t", "s", "m", "re", "ve", ".", ",", "?", "##n", "é"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _built(backend: Backend, *, clean_up: bool = False) -> Tokenizer:
    return Tokenizer(Recipe(data=json.loads(backend.to_str()), added=(), names={}, clean_up=clean_up))


def _wordpiece(*, cleanup: bool, clean_up: bool) -> Tokenizer:
    backend = Backend(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[PAD]"))
    backend.add_special_tokens(["[PAD]"])
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    return _built(backend, clean_up=clean_up)


def _sentencepiece(*, strips: bool) -> Tokenizer:
    """Blocks for spaces, bytes for what it does not know."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>", *BYTES]))
    data = json.loads(backend.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in BYTES]
    data["model"]["byte_fallback"] = True
    backend = Backend.from_str(json.dumps(data))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return _built(backend)


def _metaspace() -> Tokenizer:
    pieces = ["<s>", "▁a", "▁dog", "▁", "s", "dog", "'", "▁'", "n't", ".", "▁.", "é"]
    backend = Backend(models.Unigram([(piece, -1.0 - index / 8) for index, piece in enumerate(pieces)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    return _built(backend, clean_up=True)


KINDS = {
    "bytes": train_tokenizer(TEXTS, 330),
    "wordpiece": _wordpiece(cleanup=False, clean_up=False),
    "wordpiece-cleaned": _wordpiece(cleanup=True, clean_up=False),
    "wordpiece-cleaned-twice": _wordpiece(cleanup=True, clean_up=True),
    "sentencepiece": _sentencepiece(strips=False),
    "sentencepiece-stripped": _sentencepiece(strips=True),
    "metaspace-cleaned": _metaspace(),
}


def _pieces(words: Tokenizer, parts: Sequence[Sequence[int]]) -> list[str]:
    text = GrowingText(words)
    return [*[text.add(part) for part in parts], text.rest()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_pieces_of_any_tokens_make_up_their_text(kind: str, data: st.DataObject) -> None:
    words = KINDS[kind]
    # One beyond the vocabulary, as a model may be larger than its tokenizer.
    parts = data.draw(st.lists(st.lists(st.integers(0, words.vocab_size), max_size=3), max_size=12))
    assert "".join(_pieces(words, parts)) == words.decode([token for part in parts for token in part])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text("an'tsmd. é", max_size=14))
@example(text="a n ' t")
@example(text="a don ' t s")
@example(text="a ' ' t")
def test_no_space_that_is_cleaned_away_was_handed_out(text: str) -> None:
    ids = {piece: index for index, piece in enumerate(PIECES)}
    tokens = [ids[piece] for piece in text.split() if piece in ids]
    for kind in ("wordpiece-cleaned", "wordpiece-cleaned-twice"):
        assert "".join(_pieces(KINDS[kind], [[token] for token in tokens])) == KINDS[kind].decode(tokens)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=20))
@example(text="図書館 a 図 😀 b")
def test_characters_of_several_tokens_come_whole(text: str) -> None:
    for kind in ("bytes", "sentencepiece", "sentencepiece-stripped"):
        words = KINDS[kind]
        tokens = words.encode(text)
        pieces = _pieces(words, [[token] for token in tokens])
        assert "".join(pieces) == words.decode(tokens)
        assert "�" in text or "�" not in "".join(pieces)


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece-stripped"])
def test_bytes_that_a_later_one_can_spoil_are_held_back(kind: str) -> None:
    """A run of byte tokens is text as a whole or not at all, the space in it too."""
    words = KINDS[kind]
    run = [words.token_id(f"<0x{byte:02X}>") for byte in b"a b"]
    tokens = [*words.encode("dog dog"), *run, words.token_id("</s>"), words.vocab_size, words.token_id("<0xFF>")]
    pieces = _pieces(words, [[token] for token in tokens])
    assert "".join(pieces) == words.decode(tokens) == "dog dog\ufffd\ufffd\ufffd\ufffd"
    assert pieces[-1] == " dog\ufffd\ufffd\ufffd\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "sentencepiece-stripped"])
def test_a_word_comes_with_the_token_that_begins_the_next(kind: str) -> None:
    words = KINDS[kind]
    tokens = words.encode("A dog runs through the grass")
    came = GrowingText(words)
    handed = ""
    for count, token in enumerate(tokens, start=1):
        handed += came.add([token])
        assert handed == words.decode(tokens[:count]).rpartition(" ")[0]
    assert came.rest() == " grass"


# Most of what random weights would write are bytes without a space.
_FEW_BYTES = tuple(
    index
    for content, index in KINDS["bytes"].backend.get_vocab().items()
    if not content.startswith("Ġ") and index % 8 and index != KINDS["bytes"].eos_id
)
OPTIONS = GenerationOptions(max_new_tokens=12, suppress_tokens=_FEW_BYTES)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"temperature": 3.0},
    "filtered": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 12},
    "loops": {"stop_loops": True, "max_new_tokens": 40},
    "beams": {"num_beams": 3},
    "nothing": {"max_new_tokens": 0},
}


@pytest.fixture(scope="module", params=["tiny", "seed"])
def captioner(request: pytest.FixtureRequest, tools: ModuleType) -> Captioner:
    """One with a cache and one without."""
    settings = {"text.max_length": 60, "text.vocab_size": 330}
    if request.param == "seed":
        settings = {**tools.SMALL["seed"], "vocab_size": 330}
    config = preset(request.param, settings)
    return Captioner(
        model=tools.build_model(config),
        tokenizer=KINDS["bytes"],
        preprocessing=default_preprocessing(config),
        generation=OPTIONS,
    )


def _photo(captioner: Captioner, seed: int = 3) -> Any:
    noise = torch.randint(0, 256, (6 * 9 * 3,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return captioner.read(Image.frombytes("RGB", (9, 6), bytes(noise.tolist())))


def _all(stream: Generator[str, None, Caption]) -> tuple[list[str], Caption]:
    pieces: list[str] = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("prompt", [None, "A dog runs"])
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_is_the_caption_token_for_token(way: str, prompt: str | None, captioner: Captioner) -> None:
    picture, options = _photo(captioner), replace(OPTIONS, **WAYS[way])
    for seed in (5, 6):
        pieces, caption = _all(captioner.stream(picture, prompt=prompt, options=options, seed=seed))
        assert [[caption]] == captioner.generate([picture], prompt=prompt, options=options, seeds=[seed])
        assert "".join(pieces) == caption.text
        assert "" not in pieces
        if prompt is not None:
            assert pieces[0] == "A dog"


def test_a_piece_comes_before_the_next_token_is_computed(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, seen = _photo(captioner), []
    see = captioner.see
    monkeypatch.setattr(captioner, "see", lambda pictures: seen.append(1) or see(pictures))
    stream = captioner.stream(picture, prompt="A dog runs")
    assert next(stream) == "A dog"
    assert not seen
    next(stream)
    assert seen


def test_the_caller_is_left_in_its_own_mode(captioner: Captioner) -> None:
    captioner.model.train()
    try:
        stream = captioner.stream(_photo(captioner), prompt="A dog runs")
        for _ in range(3):
            next(stream)
            assert not torch.is_inference_mode_enabled()
            assert captioner.model.training
        stream.close()
        assert captioner.model.training
    finally:
        captioner.model.eval()


def test_a_stream_of_several_captions_is_refused_at_once(captioner: Captioner) -> None:
    options = replace(OPTIONS, num_beams=3, num_captions=2)
    with pytest.raises(UsageError, match=r"one caption \(num_captions 2\)"):
        captioner.stream(_photo(captioner), options=options)
    with pytest.raises(UsageError, match="the model's context is"):
        captioner.stream(_photo(captioner), prompt="dog " * captioner.model.config.text.max_length)


def test_each_step_of_a_generator_runs_in_the_mode() -> None:
    inside: list[bool] = []

    @contextlib.contextmanager
    def mode() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def steps() -> Generator[int, None, str]:
        for number in range(3):
            assert inside
            yield number
        return "done"

    stream = stepwise(steps(), mode)
    for number in range(3):
        assert next(stream) == number
        assert not inside
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == "done"
