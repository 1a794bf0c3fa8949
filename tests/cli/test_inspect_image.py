"""`mmt inspect --image`, `--attention` and `--plan`: what they show, draw and refuse."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmt_cli import Captioner

CONFIG = Captioner.load("mini").model.config
SIZE, TOKENS, LAYERS = CONFIG.vision.image_size, CONFIG.num_image_tokens, CONFIG.text.num_layers
PHOTO = str(Path(__file__).parent.parent / "data" / "cow.jpg")


def test_a_photo_is_shown_step_by_step_and_word_by_word(mmt):
    out = mmt("inspect", "mini", "--image", PHOTO).out
    caption = mmt("caption", PHOTO).out.strip()
    lines = out.splitlines()
    assert lines[0] == caption
    assert any(re.fullmatch(rf"resize +{SIZE} x {SIZE} +bicubic", line.rstrip()) for line in lines)
    assert f"tiles: 1, image tokens: {TOKENS}, prompt tokens: 1" in lines
    for word in caption.split():
        assert any(line.startswith(word) and line.rstrip().endswith("%") for line in lines), word
    assert "gate" not in out


def test_the_record_of_a_photo_holds_words_and_their_rivals(mmt):
    record = json.loads(mmt("inspect", "mini", "--image", PHOTO, "-p", "A", "-f", "json").out)
    image = record["image"]
    assert record["model"] == "mini"
    assert [word["given"] for word in image["words"][:2]] == [True, False]
    assert all(len(word["runners_up"]) == 3 for word in image["words"])
    assert "attention" not in image
    rows = mmt("inspect", "mini", "--image", PHOTO, "-f", "csv").out.splitlines()
    assert rows[0] == "word,tokens,given,probability,runners_up"


def test_attention_is_drawn_and_told(mmt, tmp_path):
    picture, page = tmp_path / "looks.png", tmp_path / "looks.html"
    done = mmt("inspect", "mini", "--image", PHOTO, "--attention", str(picture), "-f", "json")
    attention = json.loads(done.out)["image"]["attention"]
    for word in attention:
        [tile] = word["weights"]
        assert (len(tile), len(tile[0])) == CONFIG.image_grid
        assert sum(map(sum, tile)) == pytest.approx(1, abs=1e-3)
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
    out = mmt("inspect", "mini", "--image", PHOTO, "--attention", str(page), "--layer", "2", "--head", "1").out
    assert "Cross-attention, layer 2, head 1." in out
    assert page.read_text(encoding="utf-8").count('class="heat"') == len(attention)
    assert "\x1b" not in out


def test_layers_heads_and_rollout_look_elsewhere(mmt, tmp_path):
    path = str(tmp_path / "looks.png")
    asked = ("inspect", "mini", "--image", PHOTO, "--attention", path, "-f", "json")
    ways = ((), ("--layer", "0"), ("--head", "0"), ("--rollout",))
    found = [json.loads(mmt(*asked, *way).out)["image"]["attention"][1]["weights"] for way in ways]
    assert all(found[0] != other for other in found[1:])


def test_a_terminal_with_colours_gets_pictures(mmt, tmp_path, monkeypatch):
    import sys

    from mmt_cli.cli import inspect_image

    drawn = []
    monkeypatch.setattr(inspect_image, "show_pictures", lambda sight, photo: drawn.append(sight))
    mmt("inspect", "mini", "--image", PHOTO, "--attention", str(tmp_path / "a.png"))
    assert len(drawn) == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    rows = list(inspect_image._rows_of_pictures(drawn[0], Image.open(PHOTO), 80))
    assert len(rows) == -(-len(drawn[0].sights) // 2)  # two pictures of 26 columns beside each other
    assert "▀" in rows[0].plain
    assert drawn[0].sights[0].word.text in rows[0].plain


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--image", PHOTO, "--attention", "a.gif"), 2, "(--attention 'a.gif'); use .png or .html"),
        (("--attention", "a.png"), 2, "(--attention 'a.png', --image missing)"),
        (("--image", PHOTO, "--layer", "1"), 2, "(--layer 1, --attention missing)"),
        (
            ("--image", PHOTO, "--attention", "a.png", "--layer", "99"),
            2,
            f"--layer 99, these do: {', '.join(map(str, range(LAYERS)))}",
        ),
        (
            ("--image", PHOTO, "--attention", "a.png", "--head", "99"),
            2,
            f"--head 99, the model has 0 to {CONFIG.text.block.num_heads - 1}",
        ),
        (("--image", PHOTO, "--attention", "a.png", "--layer", "1", "--rollout"), 2, "--rollout, --layer 1"),
        (("--image", PHOTO, "--attention", "/no/such/folder/a.png"), 2, "cannot be written"),
        (("--plan", "--image", PHOTO), 2, "one look at a time"),
        (("--batch-size", "2"), 2, "(--batch-size 2, --plan missing)"),
        (("--plan", "--gen-tokens", "9000"), 2, "the text is too long for the model"),
    ],
)
def test_what_cannot_be_drawn_or_planned_says_why_in_one_line(mmt, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    done = mmt("inspect", "mini", *arguments)
    assert (done.code, len(done.lines)) == (code, 1)
    assert words in done.err


def test_a_plan_is_shown_by_phase_and_by_memory(mmt):
    done = mmt("inspect", "preset:tiny", "--plan", "-b", "2", "--gen-tokens", "5", "--dtype", "bfloat16")
    lines = done.out.splitlines()
    assert lines[0].startswith("preset:tiny: 43,584 parameters, 2 images, 1 + 5 tokens, 1 beam, bfloat16")
    for phase in (
        "caption: vision",
        "caption: prefill",
        "caption: step",
        "train: backward",
        "train, recomputed: backward",
    ):
        assert any(line.startswith(phase) for line in lines), phase
    for size in ("8 GB", "16 GB", "24 GB", "80 GB"):
        assert any(line.startswith(size) for line in lines), size
    record = json.loads(mmt("inspect", "preset:tiny", "--plan", "--num-beams", "3", "-f", "json").out)
    assert record["load"]["beams"] == 3
    assert record["caption"]["peak_bytes"] > record["weights_bytes"]
    assert [fit["gigabytes"] for fit in record["fits"]] == [8, 16, 24, 80]
