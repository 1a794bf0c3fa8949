"""A text as a model reads it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection.tokens import read_tokens

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint/families"))
PHOTO = str(Path(__file__).parent.parent / "data/dog.jpg")


def test_ids_pieces_and_places_are_the_tokenizers(saved: Path) -> None:
    text, reading = "A dog  runs", read_tokens(str(saved), "A dog  runs")
    captioner = Captioner.load(saved, device="cpu")
    assert captioner.tokenizer is not None
    assert [token.id for token in reading.tokens] == captioner.tokenizer.encode(text)
    assert [token.id for token in reading.prompt] == list(captioner.encode_prompt(text).ids)
    assert all(captioner.tokenizer.token_id(token.piece or "") == token.id for token in reading.tokens)
    spelled = [text[token.start : token.stop] for token in reading.tokens]
    assert "".join(spelled).split() == text.split()
    assert [token.kind for token in reading.prompt][:2] == ["special", "text"]
    assert dict(reading.specials)["bos_token"] == "<bos>"


@pytest.mark.parametrize("family", ["git", "blip-vqa", "smolvlm", "paligemma", "florence2"])
@pytest.mark.parametrize("image", [None, PHOTO])
def test_the_prompt_is_the_one_that_is_sent(family: str, image: str | None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf.build import build

    build(family, tmp_path / family)
    captioner = Captioner.load(tmp_path / family, device="cpu")
    layout = None if image is None else captioner.layout(captioner.read(image))
    sent = captioner.encode_prompt("a dog", layout)
    reading = read_tokens(str(tmp_path / family), "a dog", image=image)
    assert tuple(token.id for token in reading.prompt) == sent.ids
    encoder = reading.encoder_prompt
    assert (None if encoder is None else tuple(token.id for token in encoder)) == sent.encoder_ids
    layout = layout or captioner.layout()
    assert (reading.image_tokens, reading.tiles) == (layout.tokens * layout.tiles, layout.tiles)
    places = [token for token in (*reading.prompt, *(encoder or ())) if token.kind == "image"]
    assert len(places) == (reading.image_tokens if reading.in_prompt else 0)
    json.dumps(reading.to_json())


def test_weights_are_not_needed(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(8 + length)
        file.truncate(len(content))  # a header, and a hole
    assert read_tokens(str(copy), "A dog").prompt


def test_a_preset_reads_with_a_tokenizer_that_is_given(saved: Path) -> None:
    reading = read_tokens("preset:tiny", "A dog", tokenizer=str(saved), settings={"text.vocab_size": 400})
    assert [token.id for token in reading.tokens] == [token.id for token in read_tokens(str(saved), "A dog").tokens]


def test_no_text_is_no_token(saved: Path) -> None:
    reading = read_tokens(str(saved), "")
    assert (reading.tokens, [token.kind for token in reading.prompt]) == ((), ["special"])


@pytest.mark.parametrize("text", ["<bos>", "a\0b", "\ud800", "<pad> <eos>"])
def test_hostile_text_is_text(saved: Path, text: str) -> None:
    assert {token.kind for token in read_tokens(str(saved), text).tokens} == {"text"}


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"text": "dog " * 500}, UsageError, "the prompt is too long"),
        ({"tokenizer": "nowhere.json"}, ModelError, "no tokenizer"),
        ({"reference": "preset:tiny"}, ModelError, "add|give --tokenizer"),
        ({"reference": "preset:nope"}, UsageError, "unknown preset"),
        ({"reference": "nowhere"}, ModelError, "unknown model"),
    ],
)
def test_what_cannot_be_read_says_why(saved: Path, change: dict[str, Any], error: type[Exception], told: str) -> None:
    asked = {"reference": str(saved), "text": "A dog", **change}
    with pytest.raises(error, match=told):
        read_tokens(asked.pop("reference"), asked.pop("text"), **asked)
