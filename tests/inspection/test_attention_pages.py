"""The sheet and the page are legible, complete and closed to what comes from outside."""

import base64
import dataclasses
import hashlib
import html
import io
import re
from types import ModuleType

import pytest
import torch
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.preprocess import Preprocessing, to_picture
from mmt_cli.inputs.prompt import Prompt
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.inspection.attention import Choice, Sight, WordSight, look
from mmt_cli.inspection.attention_page import page
from mmt_cli.inspection.attention_sheet import png, sheet
from mmt_cli.inspection.geometry import Cells
from mmt_cli.inspection.heat import beneath, heat_of, lit
from mmt_cli.inspection.reading import Script, Word, write
from mmt_cli.model.presets import preset

HOSTILE = "<script>alert(1)</script>"


def sight_of(tools: ModuleType, words: list[str], photo: Image.Image, **way: object) -> Sight:
    """Return a sight of these words: the first looked at the top left corner, the next at the cell after it."""
    config = preset("tiny", {"text.vocab_size": 291})
    how = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3, **way)  # type: ignore[arg-type]
    captioner = Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs ."] * 4, 290),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(max_new_tokens=3),
    )
    picture = to_picture(photo, how)
    seen = captioner.see([captioner.prepare(photo)])
    [[caption]] = captioner.generate_from(seen)
    caption = dataclasses.replace(caption, text=" ".join(words))
    script = Script(captioner=captioner, picture=picture, image=seen, prompt=Prompt(ids=(1,)), caption=caption)
    sights = []
    for index, text in enumerate(words):
        weights = torch.zeros(1, 4, 4)
        weights.view(-1)[index] = 1.0
        rivals = (("other", 0.2), (HOSTILE, 0.1))
        word = Word(text=text, tokens=(index,), given=False, probability=0.5, runners_up=rivals)
        sights.append(WordSight(word=word, share=0.8, weights_TRC=weights))
    cells = Cells(rows=4, columns=4, extra=0, height=1.0, width=1.0)
    return Sight(
        script=script,
        words=tuple(one.word for one in sights),
        sights=tuple(sights),
        cells=cells,
        notes=("What is shown.", "What is not."),
    )


@pytest.fixture
def photo() -> Image.Image:
    return Image.new("RGB", (400, 200), (60, 120, 180))


def test_heat_lies_where_the_model_looked(tools: ModuleType, photo: Image.Image) -> None:
    heat = heat_of(sight_of(tools, ["a", "b"], photo), photo, 80)
    assert [level.size for level in heat.levels] == [(80, 40)] * 2
    for index, level in enumerate(heat.levels):
        hot = level.getpixel((index * 20 + 10, 5))
        assert isinstance(hot, int) and hot > 180
        assert level.getpixel((70, 35)) == 0
        picture = lit(beneath(heat), level)
        assert picture.getpixel((index * 20 + 10, 5)) != picture.getpixel((70, 35))


def test_what_the_model_did_not_see_is_darker(tools: ModuleType, photo: Image.Image) -> None:
    heat = heat_of(sight_of(tools, ["a"], photo, shortest_edge=32), photo, 80)
    below = beneath(heat)
    assert below.getpixel((2, 20)) < below.getpixel((40, 20))


def test_the_sheet_has_a_picture_for_each_word_and_one_for_the_photo(tools: ModuleType, photo: Image.Image) -> None:
    words = [f"word{index}" for index in range(8)]
    drawn = sheet(sight_of(tools, words, photo), photo)
    few = sheet(sight_of(tools, words[:2], photo), photo)
    assert drawn.width > few.width
    assert drawn.height > few.height + 120  # a second row
    paper = drawn.getpixel((2, 2))
    assert all(drawn.getpixel((x, drawn.height - 2)) == paper for x in range(drawn.width)), "it runs over the edge"
    opened = Image.open(io.BytesIO(png(sight_of(tools, words, photo), photo)))
    assert (opened.format, opened.size) == ("PNG", drawn.size)


@pytest.mark.parametrize("shape", [(2000, 20), (20, 2000), (1, 1)])
def test_a_sheet_of_any_photo_stays_of_a_sane_size(tools: ModuleType, shape: tuple[int, int]) -> None:
    photo = Image.new("RGB", shape)
    drawn = sheet(sight_of(tools, ["a" * 500, "犬", "\x1b[31m", "‮"], photo), photo)
    assert drawn.width < 2000
    assert drawn.height < 2000


def test_a_caption_without_words_makes_a_sheet_and_a_page(tools: ModuleType, photo: Image.Image) -> None:
    sight = sight_of(tools, [], photo)
    assert sheet(sight, photo).width > 400
    assert "<main>" in page(sight, photo, "x.jpg")


def test_the_page_lets_nothing_in(tools: ModuleType, photo: Image.Image) -> None:
    text = page(sight_of(tools, [HOSTILE, "dog"], photo), photo, f"{HOSTILE}\x1b.jpg")
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text
    assert "\x1b" not in text
    found = re.search(r'content="(default-src[^"]*)"', text)
    assert found is not None
    policy = found[1]
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert not re.search(r" (?:style|on\w+)=", text)


def test_the_page_has_words_layers_and_facts_in_the_same_order(tools: ModuleType, photo: Image.Image) -> None:
    words = ["one", "two", "three"]
    text = page(sight_of(tools, words, photo), photo, "x.jpg")
    assert re.findall(r'<button type="button" class="word">(\w+)</button>', text) == words
    assert re.findall(r"<h2[^>]*>(\w+)</h2>", text) == words
    assert text.count('class="heat"') == 3
    assert "probability 50.0%, 80% of its attention on the photo" in text


def test_a_real_reading_can_be_drawn(tools: ModuleType, photo: Image.Image, tmp_path: object) -> None:
    config = preset("tiny", {"text.vocab_size": 291, "fusion": {"kind": "cross"}})
    captioner = Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs ."] * 4, 290),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(max_new_tokens=4),
    )
    path = f"{tmp_path}/photo.png"
    photo.save(path)
    sight = look(write(captioner, path), Choice(rollout=True))
    assert sheet(sight, photo).height > 100
    assert len(page(sight, photo, path)) > 1000
