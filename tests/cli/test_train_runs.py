"""`mmt train` that is stopped, gone on with, scored and looked at."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

from mmt_cli.cli.train_progress import TrainProgress

TINY = ("--preset", "tiny", "--steps", "8", "-b", "4", "--eval-every", "4", "--save-every", "3", "--seed", "3")


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


@pytest.fixture
def at_step(monkeypatch):
    """Return a function: at this step, or this kind of event, do something."""
    show = TrainProgress.show

    def plan(step, act, kind="Stepped"):
        def shown(self, event):
            if (type(event).__name__, getattr(event, "step", 0)) == (kind, step):
                act()
            show(self, event)

        monkeypatch.setattr(TrainProgress, "show", shown)

    return plan


def sha256(out):
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("number", "code", "what"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_has_the_run_saved_and_the_same_command_goes_on(mmt, photos, tmp_path, at_step, number, code, what):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run = ("train", str(photos), "--val", str(photos), *TINY)
    assert mmt(*run, "-o", str(whole)).code == 0
    at_step(5, lambda: os.kill(os.getpid(), number))
    ended = mmt(*run, "-o", str(out))
    assert ended.code == code
    assert ended.lines[-1] == f"mmt: {what}; step 5 is saved; go on with the same command and --resume auto"
    at_step(0, lambda: None)
    done = mmt(*run, "-o", str(out), "--resume", "auto")
    assert (done.code, done.out) == (0, f"{out}\n")
    assert "going on behind step 5" in done.err
    assert sha256(out) == sha256(whole)


def test_a_second_signal_ends_the_run_at_once(mmt, photos, tmp_path, at_step):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(5, twice)
    ended = mmt("train", str(photos), *TINY, "-o", str(tmp_path / "out"))
    assert ended.code == 130
    assert "stopped at once" in ended.lines[-1]
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-000003"]


def test_a_signal_before_the_first_step_ends_the_run(mmt, photos, tmp_path, at_step, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM), kind="Prepared")
    ended = mmt("train", str(photos), *TINY, "--freeze", "vision", "--cache-features", "-o", str(tmp_path / "out"))
    assert ended.code == 143
    assert ended.lines[-1] == "mmt: terminated; nothing new was there to save"


def test_a_run_that_differs_from_the_saved_one_is_one_line(mmt, photos, tmp_path):
    run = ("train", str(photos), *TINY, "-o", str(tmp_path / "out"))
    assert mmt(*run).code == 0
    again = mmt(*run)
    assert (again.code, len(again.lines)) == (2, 1)
    assert "--resume auto" in again.err
    other = mmt(*run, "--lr", "0.1", "--resume", "latest")
    assert (other.code, len(other.lines)) == (2, 1)
    assert "--lr 0.1" in other.err and "0.0005" in other.err


def test_nothing_to_resume_is_code_5(mmt, photos, tmp_path):
    ended = mmt("train", str(photos), *TINY, "-o", str(tmp_path / "out"), "--resume", "latest")
    assert (ended.code, len(ended.lines)) == (5, 1)


def test_a_run_that_diverges_is_code_6(mmt, photos, tmp_path, monkeypatch):
    loss = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("mmt_cli.training.objectives.caption.next_token_loss", lambda *_, **__: loss)
    ended = mmt("train", str(photos), *TINY, "-o", str(tmp_path / "out"), "-q")
    assert (ended.code, len(ended.lines)) == (6, 1)
    assert "step 1 (loss nan" in ended.err
    assert sum(f"{index}.png" in ended.err for index in range(8)) == 4


# --- scoring


def test_a_trained_model_is_scored_without_a_folder_to_write(mmt, photos, tmp_path):
    out = tmp_path / "out"
    run = (
        "train",
        str(photos),
        "--val",
        str(photos),
        "-o",
        str(out),
        "--preset",
        "tiny",
        "--steps",
        "60",
        "--eval-every",
        "30",
    )
    assert mmt(*run, "--lr", "5e-3", "--warmup", "5", "--label-smoothing", "0").code == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    scored = mmt("train", "--eval-only", "--init", str(out), "--val", str(photos))
    assert scored.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in scored.out.splitlines() if " to " in line}
    assert list(rows) == ["CIDEr-D", "CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    evaluated = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max((line for line in evaluated if line["kind"] == "eval"), key=lambda line: line["cider"])
    assert float(rows["CIDEr"][1]) == pytest.approx(best["cider_plain"], abs=0.01)
    assert [float(rows["CIDEr"][place]) for place in (2, 4)] == pytest.approx(
        best["intervals"]["cider_plain"], abs=0.01
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    found = json.loads(mmt("train", "--eval-only", "--init", str(out), "--val", str(photos), "-f", "json").out)
    assert found["figures"]["cider"] == pytest.approx(best["cider"])
    assert found["intervals"]["bleu4"] == pytest.approx(best["intervals"]["bleu4"])
    assert (found["model"].partition("@")[0], found["images"]) == ("out", 8)
    # The run itself left the same beside its best weights.
    assert json.loads((out / "scores.json").read_text(encoding="utf-8")) == found
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["image"]: line["caption"] for line in lines}.items() >= best["samples"].items()
    assert (
        mmt("train", "--eval-only", "--init", str(out), "--val", str(photos), "-o", str(tmp_path / "scored")).code == 0
    )
    for name in ("scores.json", "scores.jsonl"):
        assert (tmp_path / "scored" / name).read_bytes() == (out / name).read_bytes()


def test_a_foreign_model_is_scored(mmt, photos, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "checkpoint/families"))
    from hf.build import build

    build("git", tmp_path / "git")
    scored = mmt(
        "train", "--eval-only", "--init", str(tmp_path / "git"), "--val", str(photos), "-o", str(tmp_path / "o")
    )
    assert scored.code == 0
    assert "ROUGE-L" in scored.out
    lines = [json.loads(line) for line in (tmp_path / "o/scores.jsonl").read_text(encoding="utf-8").splitlines()]
    captioned = mmt("caption", str(photos), "-m", str(tmp_path / "git"), "-f", "jsonl", "-b", "1")
    assert [line["caption"] for line in lines] == [json.loads(line)["caption"] for line in captioned.out.splitlines()]


def test_a_folder_for_scores_that_cannot_be_made_is_told_before_the_first_caption(mmt, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("mmt_cli.training.scoring.Evaluator", None)
    (tmp_path / "file").touch()
    ended = mmt("train", "--eval-only", "--val", str(photos), "--out", str(tmp_path / "file/out"))
    assert (ended.code, len(ended.lines), ended.out) == (2, 1, "")
    assert f"--out {tmp_path / 'file/out'}, Not a directory); give another folder" in ended.err


def test_scores_that_the_disk_does_not_take_are_shown_all_the_same(mmt, photos, tmp_path):
    (tmp_path / "out/scores.jsonl").mkdir(parents=True)
    ended = mmt("train", "--eval-only", "--val", str(photos), "--out", str(tmp_path / "out"))
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "Is a directory); give another folder" in ended.err
    assert "CIDEr-D" in ended.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--eval-only",), 2, "--eval-only without --val"),
        (("--eval-only", "--val", "photos", "--preset", "tiny"), 2, "--preset 'tiny'"),
        (("--eval-only", "--val", "photos", "--init", "nowhere"), 5, "nowhere"),
        (("-o", "out"), 2, "DATA"),
        (("photos",), 2, "--out"),
    ],
)
def test_what_is_missing_is_named(mmt, photos, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    ended = mmt("train", *arguments)
    assert (ended.code, len(ended.lines)) == (code, 1)
    assert words in ended.err


# --- to look at


def test_curves_are_drawn_where_matplotlib_is(mmt, photos, tmp_path):
    pytest.importorskip("matplotlib")
    mmt("train", str(photos), "--val", str(photos), *TINY, "-o", str(tmp_path / "out"))
    with PIL.Image.open(tmp_path / "out/curves.png") as image:
        assert image.size == (840, 540)


def test_one_line_says_that_curves_need_matplotlib(mmt, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = ("train", str(photos), *TINY)
    told = mmt(*run, "-o", str(tmp_path / "out"))
    assert (told.code, told.err.count("mmt-cli[plots]")) == (0, 1)
    assert not (tmp_path / "out/curves.png").exists()
    assert mmt(*run, "-o", str(tmp_path / "quiet"), "-q").err == ""


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_service_that_is_not_installed_is_named_with_its_extra(mmt, photos, tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    ended = mmt("train", str(photos), *TINY, "-o", str(tmp_path / "out"), "--report-to", name)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert f"pip install 'mmt-cli[{name}]'" in ended.err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_service_gets_every_figure(mmt, photos, tmp_path, monkeypatch, name):
    told, closed, runs = [], [], []

    class Service:
        def __init__(self, *_, **settings):
            runs.append(settings)

        def add_scalar(self, figure, value, step):
            told.append((figure, step))

        def log(self, figures, step):
            told.extend((figure, step) for figure in figures)

        def close(self):
            closed.append(True)

        finish = close

    stand_in = type(sys)("stand_in")
    stand_in.SummaryWriter, stand_in.init = Service, Service
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name], stand_in)
    run = ("train", str(photos), "--val", str(photos), *TINY, "-o", str(tmp_path / "out"))
    assert mmt(*run, "--report-to", name).code == 0
    assert {("train/loss", 8), ("train/lr", 8), ("eval/cider", 4), ("eval/cider", 8)} <= set(told)
    assert closed == [True]
    assert mmt(*run, "--report-to", name, "--resume", "auto").code == 0
    if name == "wandb":
        assert runs[0]["id"] == runs[1]["id"]
    else:
        assert [settings["purge_step"] for settings in runs] == [1, 9]
