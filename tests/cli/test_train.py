"""`mmt train` from the command line to a folder that `mmt caption` uses."""

import json
import re

import PIL.Image
import pytest
import typer.main

from mmt_cli.cli.app import build

OPTIONS = (
    "--out --val --images --max-errors --shuffle-buffer --augment --preset --config --init --vision-init --tokenizer "
    "--set --epochs --steps --batch-size --grad-accum --lr --warmup --schedule --weight-decay --grad-clip "
    "--label-smoothing --dropout --ema --lora --lora-targets --precision --freeze --objective --sample-temperature "
    "--cache-features --grad-checkpointing --compile --eval-only --eval-every --early-stop --save-every --keep "
    "--keep-best --resume --report-to --parallel --save-format --save-dtype --format --device "
    "--threads --seed --quiet --debug"
)
SEED = (
    "--preset",
    "seed",
    "--set",
    "d_model=96",
    "--set",
    "num_layers=2",
    "--set",
    "mlp_dim=192",
    "--set",
    "img_size=32",
)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    colours = {"red": (220, 30, 30), "green": (30, 200, 30)}
    for index in range(8):
        name = list(colours)[index % 2]
        PIL.Image.new("RGB", (40, 32), colours[name]).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"A {name} square .\n", encoding="utf-8")
    return folder


def test_the_options_are_these_and_no_others():
    command = build().commands["train"]
    names = [next(n for n in p.opts if n.startswith("--")) for p in command.params if p.param_type_name == "option"]
    assert names == OPTIONS.split()
    assert isinstance(command, typer.core.TyperCommand)


def test_the_listing_trains_and_its_checkpoint_writes_words(mmt, photos, tmp_path):
    out = tmp_path / "out"
    recipe = ("--steps", "250", "--eval-every", "250", "--lr", "2e-3", "--dropout", "0")
    done = mmt("train", str(photos), "--out", str(out), *SEED, *recipe)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert "8 training images, 0 validation images" in done.err
    written = mmt("caption", str(photos / "0.png"), "-m", str(out), "--prompt", "A")
    assert written.code == 0
    assert written.out.startswith("A ")
    assert "square" in written.out


def test_quiet_leaves_stderr_empty(mmt, photos, tmp_path):
    done = mmt("train", str(photos), "--out", str(tmp_path / "out"), "--preset", "tiny", "--steps", "2", "-q")
    assert (done.code, done.err) == (0, "")


def test_validation_is_scored_and_shown(mmt, photos, tmp_path):
    out = tmp_path / "out"
    done = mmt("train", str(photos), "--val", str(photos), "-o", str(out), "--preset", "tiny", "--steps", "2")
    assert done.code == 0
    assert "CIDEr" in done.err
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "eval" in kinds


def test_sentences_alone_are_learned_and_scored_by_perplexity(mmt, tmp_path):
    (tmp_path / "text.txt").write_text("A red square .\nA dog runs .\n", encoding="utf-8")
    run = ("train", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out"), "--preset", "tiny", "--steps", "2")
    done = mmt(*run, "--objective", "language", "--val", str(tmp_path / "text.txt"))
    assert done.code == 0
    assert "2 training sentences, 2 validation sentences" in done.err
    assert "sentences/s" in done.err
    assert "step 2: perplexity " in done.err


def test_the_parts_of_a_loss_are_shown(mmt, photos, tmp_path):
    run = ("train", str(photos), "-o", str(tmp_path / "out"), "--preset", "tiny", "--steps", "2")
    done = mmt(*run, "--objective", "masked", "--val", str(photos))
    assert done.code == 0
    shown = r"step 2/2  loss \d\.\d+  masked text \d\.\d+  masked image \d\.\d+  \d+ images/s\n"
    assert re.search(shown, done.err)
    assert re.search(r"step 2: loss .*  accuracy \d+\.\d %  \(best, saved\)", done.err)


def test_a_toml_file_describes_the_model(mmt, photos, tmp_path):
    config = tmp_path / "model.toml"
    config.write_text(
        """
        [vision]
        kind = "patches"
        image_size = 32
        patch_size = 16
        num_layers = 0
        block = { width = 16, num_heads = 2, mlp_width = 32 }
        [text]
        vocab_size = 300
        max_length = 24
        num_layers = 1
        block = { width = 16, num_heads = 2, mlp_width = 32 }
        [fusion]
        kind = "concat"
        """,
        encoding="utf-8",
    )
    out = tmp_path / "out"
    done = mmt(
        "train", str(photos), "-o", str(out), "--config", str(config), "--set", "text.max_length=20", "--steps", "1"
    )
    assert done.code == 0
    text = json.loads((out / "config.json").read_text(encoding="utf-8"))["text"]
    assert (text["block"]["width"], text["max_length"]) == (16, 20)


def test_matrices_are_saved_in_the_dtype_asked_for_and_load(mmt, photos, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        out = tmp_path / dtype
        run = ("train", str(photos), "-o", str(out), "--preset", "tiny", "--steps", "1", "--save-dtype", dtype)
        assert mmt(*run).code == 0
        sizes[dtype] = (out / "model.safetensors").stat().st_size
        assert mmt("caption", str(photos / "0.png"), "-m", str(out)).code == 0
    assert sizes["float16"] < 0.6 * sizes["float32"]


@pytest.mark.parametrize(("option", "kept"), [((), True), (("--grad-checkpointing",), False)])
def test_freed_memory_is_kept_unless_memory_is_what_the_user_saves(mmt, photos, tmp_path, monkeypatch, option, kept):
    calls = []
    monkeypatch.setattr("mmt_cli.device.keep_freed_memory", lambda: calls.append(True))
    out = tmp_path / "out"
    assert mmt("train", str(photos), "-o", str(out), "--preset", "tiny", "--steps", "1", *option).code == 0
    assert bool(calls) == kept


def test_cached_features_are_told_and_found_again(mmt, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = ("train", str(photos), "--preset", "tiny", "--steps", "1", "--freeze", "vision", "--cache-features")
    lines = [mmt(*run, "-o", str(tmp_path / name)).lines[1] for name in ("first", "second")]
    [file] = (tmp_path / "cache/mmt/features").iterdir()
    assert lines == [f"features of 8 images {how} {file}" for how in ("kept in", "read from")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("missing.jsonl", "-o", "out"), 5, "missing.jsonl"),
        (("photos", "-o", "out", "--preset", "huge"), 2, "unknown preset ('huge', known: "),
        (("photos", "-o", "out", "--set", "d_model"), 2, "--set 'd_model'"),
        (("photos", "-o", "out", "--preset", "seed", "--set", "width=3"), 2, "unknown setting ('width'"),
        (("photos", "-o", "out", "--preset", "seed", "--set", "d_model=97"), 2, "heads do not divide the width"),
        (("photos", "-o", "out", "--preset", "tiny", "--set", "text.depth=3"), 2, "unknown setting ('text.depth'"),
        (("photos", "-o", "out", "--init", "nowhere"), 5, "unknown model ('nowhere'"),
        (("photos", "-o", "out", "--preset", "tiny", "--vision-init", "x.pth"), 2, "no weights for this tower"),
        (("photos", "-o", "out", "--vision-init", "x.pth"), 5, "vision weights are missing (x.pth"),
        (("photos", "-o", "out", "--freeze", "ears"), 2, "--freeze (got 'ears'"),
        (("photos", "-o", "out", "--objective", "rhyme"), 2, "--objective (got 'rhyme'"),
        (("photos", "-o", "out", "--objective", "caption+contrastive", "-b", "1"), 2, "--batch-size 1"),
        (("photos", "-o", "out", "--lr", "nan"), 2, "--lr"),
        (("photos",), 2, "--out"),
    ],
)
def test_what_cannot_run_is_one_line_and_its_code(mmt, photos, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    ended = mmt("train", *arguments)
    assert (ended.code, len(ended.lines)) == (code, 1)
    assert words in ended.err
    assert not (tmp_path / "out").exists()
