"""`mmt caption` with a real model: what a user meets when something is wrong, and the other images still captioned."""

import json
import shutil
from pathlib import Path

import pytest

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset

PHOTOS = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tools):
    """A tiny model with strong weights and the tokenizer of three sentences."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(["A dog runs over the grass.", "A man on a horse.", "Two dogs in the grass."], 300)
    model = tools.build_model(preset("tiny", {"text.vocab_size": tokenizer.vocab_size}))
    save_checkpoint(
        folder,
        model,
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(max_new_tokens=8),
        card="",
    )
    return folder


def test_records_name_the_weights_and_hold_what_the_python_face_gives(mmt, checkpoint):
    photo = str(PHOTOS / "dog.jpg")
    done = mmt("caption", photo, "-m", str(checkpoint), "--prompt", "A", "-f", "jsonl")
    record = json.loads(done.out)
    caption = Captioner.load(checkpoint, device="cpu").caption([photo], prompt="A")[0]
    assert record["caption"] == caption.text
    assert record["tokens"] == list(caption.tokens)
    assert record["logprob"] == pytest.approx(caption.logprob, abs=1e-4)
    assert record["model"].startswith("tiny@")
    assert record["error"] is None


def test_bad_images_are_records_with_their_kind_and_the_good_ones_are_captioned(mmt, checkpoint, tmp_path):
    shutil.copy(PHOTOS / "dog.jpg", tmp_path / "good.jpg")
    whole = (PHOTOS / "dog.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    names = [str(tmp_path / name) for name in ("missing.jpg", "half.jpg", "good.jpg", "text.jpg", "good.jpg")]
    done = mmt("caption", *names, "-m", str(checkpoint), "-f", "jsonl")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 3
    assert [record["path"] for record in records] == names
    kinds = [record["error"] and record["error"]["kind"] for record in records]
    assert kinds == ["missing", "truncated", None, "unreadable", None]
    assert records[2]["caption"] == records[4]["caption"] != ""


def test_batches_of_any_size_and_order_give_the_same_captions(mmt, checkpoint):
    photos = [str(photo) for photo in sorted(PHOTOS.glob("*.jpg"))]
    common = ("-m", str(checkpoint), "-f", "jsonl", "--temperature", "1.5", "--seed", "3", "-q")
    one = [json.loads(line) for line in mmt("caption", *photos, *common, "-b", "1").out.splitlines()]
    many = [json.loads(line) for line in mmt("caption", *reversed(photos), *common, "-b", "7").out.splitlines()]
    assert [record["tokens"] for record in one] == [record["tokens"] for record in reversed(many)]
    assert len({tuple(record["tokens"]) for record in one}) > 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("dog.jpg", "-m", "nowhere"), 5, "unknown model ('nowhere', bundled: mini)"),
        (("dog.jpg", "-m", "broken"), 5, "broken safetensors file"),
        (("dog.jpg", "-m", "empty"), 5, "config.json"),
        (("dog.jpg", "-m", "model", "--prompt", "very long " * 100), 2, "the model's context is 48"),
        (("dog.jpg", "-m", "model", "--nonsense"), 2, "unknown option (--nonsense"),
        (("empty", "-m", "model"), 2, "no image found"),
    ],
)
def test_what_cannot_run_is_one_line_and_its_code(mmt, checkpoint, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTOS / "dog.jpg", tmp_path)
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copytree(checkpoint, tmp_path / "broken")
    weights = tmp_path / "broken/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    ended = mmt("caption", *arguments)
    assert (ended.code, ended.out, len(ended.lines)) == (code, "", 1)
    assert words in ended.err


def test_a_checkpoint_without_a_tokenizer_says_so_and_takes_another(mmt, checkpoint, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    (bare / "tokenizer.json").unlink()
    photo = str(PHOTOS / "dog.jpg")
    ended = mmt("caption", photo, "-m", str(bare))
    assert ended.code == 5
    assert "--tokenizer" in ended.err
    assert mmt("caption", photo, "-m", str(bare), "--tokenizer", str(checkpoint)).code == 0
