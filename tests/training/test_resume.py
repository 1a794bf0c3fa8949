"""Runs that end at any moment and go on: the same weights, to the bit, as if nothing had happened."""

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import ModelError, OutputError, UsageError
from mmt_cli.training import checkpoints
from mmt_cli.training.checkpoints import Checkpoints, is_whole
from mmt_cli.training.events import Evaluated, Started, Stepped, Stopped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.stop import StopWish

FIGURES_OF_TIME = ("images_per_s",)

SMALL_MINI = {"vision.image_size": 64, "text.num_layers": 1}
SMALL_MINI |= {f"{part}.block.width": 16 for part in ("connector", "text")}
SMALL_MINI |= {f"{part}.block.num_heads": 2 for part in ("connector", "text")}


def options(squares: Path, out: str = "out", **changes: Any) -> TrainOptions:
    """A run in which all that could differ after a kill is on: dropout, an average, several batches a step."""
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "val": (str(squares / "val.jsonl"),),
        "out": squares.parent / out,
        "preset": "tiny",
        "steps": 20,
        "batch_size": 4,
        "grad_accum": 2,
        "ema": 0.9,
        "dropout": 0.1,
        "lr": 5e-3,
        "warmup": 5,
        "eval_every": 6,
        "save_every": 2,
        "log_every": 3,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


@pytest.fixture
def squares(squares: Path) -> Path:
    """The same squares, and a list of three of them to score on."""
    lines = [json.dumps({"image": f"{index}.png", "caption": "A red square."}) for index in range(3)]
    (squares / "val.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return squares


def finish(run: TrainOptions, wish: StopWish | None = None) -> list[Any]:
    return list(Trainer(run, wish).run())


def crash(run: TrainOptions, steps: int) -> bool:
    """Train so many steps and end without a word; True when the run was at its end before."""
    events = Trainer(run).run()
    for event in events:
        if isinstance(event, Stepped):
            steps -= 1
            if not steps:
                events.close()  # type: ignore[attr-defined]
                return False
    return True


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in FIGURES_OF_TIME} for line in lines]


def step_names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def assert_same_ends(whole: TrainOptions, resumed: TrainOptions) -> None:
    assert sha256(resumed.out) == sha256(whole.out)
    assert metrics(resumed.out) == metrics(whole.out)
    assert step_names(resumed.out) == step_names(whole.out)
    last = step_names(whole.out)[-1]
    states = [load_file(run.out / "checkpoints" / last / "training.safetensors") for run in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_twenty_crashes_at_any_step_change_no_bit_of_weights_state_and_metrics(squares: Path) -> None:
    whole = options(squares, "whole", steps=40, save_every=3)
    finish(whole)
    resumed, draw = options(squares, steps=40, save_every=3, resume="auto"), random.Random(0)
    for _ in range(20):
        crash(resumed, draw.choice((1, 2, 3, 4)))
    finish(resumed)
    assert_same_ends(whole, resumed)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": 2, "schedule": "constant"},
        {"precision": "bfloat16", "schedule": "linear"},
        {"precision": "float16"},
        {"preset": "seed", "settings": {"img_size": 32, "d_model": 32, "num_heads": 2, "num_layers": 1, "mlp_dim": 32}},
        {"settings": SMALL_MINI, "preset": "mini"},  # batch statistics
        {"freeze": "vision", "cache_features": True},
        {"objective": "masked", "ema": None},
        {"objective": "caption+contrastive"},
        {"augment": ("crop", "flip", "colour")},
        {"val": (), "grad_accum": 1},
    ],
    ids=lambda changes: " ".join(f"{name} {value}" for name, value in list(changes.items())[:1]),
)
def test_every_recipe_goes_on_to_the_same_bits(squares: Path, changes: dict[str, Any]) -> None:
    whole = options(squares, "whole", steps=8, eval_every=4, **changes)
    finish(whole)
    resumed = options(squares, steps=8, eval_every=4, resume="auto", **changes)
    crash(resumed, 5)
    finish(resumed)
    assert_same_ends(whole, resumed)


def process_of(run: TrainOptions) -> subprocess.Popen[bytes]:
    """Start a process of its own, with as many threads as it takes by itself, that writes a line an event."""
    program = (
        "import sys, pickle; from mmt_cli.training.loop import Trainer\n"
        "for event in Trainer(pickle.load(sys.stdin.buffer)).run(): print(getattr(event, 'step', 0), flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(run))
    process.stdin.close()
    process.stdin = None
    return process


@pytest.mark.slow
def test_twenty_kills_of_the_process_change_no_bit(squares: Path) -> None:
    whole = options(squares, "whole", steps=40, save_every=1)
    process_of(whole).communicate()
    resumed, draw = options(squares, steps=40, save_every=1, resume="auto"), random.Random(1)
    for _ in range(20):
        process = process_of(resumed)
        assert process.stdout is not None
        for _ in range(draw.choice((2, 3, 4))):
            process.stdout.readline()
        time.sleep(draw.random() * 0.2)  # somewhere in a step, an evaluation or a save
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (squares.parent / "out/checkpoints/step-000040").exists()
    process_of(resumed).communicate()
    assert_same_ends(whole, resumed)


def test_auto_starts_where_nothing_is_saved_and_goes_on_where_something_is(squares: Path) -> None:
    run = options(squares, resume="auto")
    assert crash(run, 5) is False
    started = next(event for event in Trainer(run).run() if isinstance(event, Started))
    assert started.done == 4


def test_a_finished_run_that_goes_on_has_nothing_left_to_do(squares: Path) -> None:
    run = options(squares, resume="auto", steps=4)
    finish(run)
    before = sha256(run.out)
    assert [type(event) for event in finish(run)] == [Started]
    assert sha256(run.out) == before


def test_latest_must_be_there(squares: Path) -> None:
    with pytest.raises(ModelError, match=r"no complete checkpoint \(--resume latest"):
        Trainer(options(squares, resume="latest"))
    assert not (squares.parent / "out").exists()


def test_a_path_goes_back_to_an_older_step(squares: Path) -> None:
    whole = options(squares, "whole", keep=9)
    finish(whole)
    shutil.copytree(whole.out, squares.parent / "out")
    resumed = options(squares, keep=9, resume=str(squares.parent / "out/checkpoints/step-000008"))
    events = finish(resumed)
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(9, 21))
    assert_same_ends(whole, resumed)


@pytest.mark.parametrize("which", ["whole/checkpoints/step-000020", "whole", "nowhere"])
def test_a_path_that_is_no_step_of_this_run_is_refused(squares: Path, which: str) -> None:
    finish(options(squares, "whole", val=()))
    with pytest.raises((UsageError, ModelError), match=f"--resume .*{which}"):
        Trainer(options(squares, resume=str(squares.parent / which)))


def test_without_resume_an_earlier_run_is_not_written_over(squares: Path) -> None:
    finish(options(squares, steps=2))
    before = sha256(squares.parent / "out")
    with pytest.raises(UsageError, match=r"holds an earlier run .*step-000002.*--resume auto"):
        Trainer(options(squares, steps=2))
    assert sha256(squares.parent / "out") == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1e-3}, r"--lr 0.001, in .*step-000006 0.005"),
        ({"steps": 30}, r"--steps 30, in .* 20"),
        ({"ema": None}, r"--ema none, in .* 0.9"),
        ({"seed": 1}, r"--seed 1, in .* 0"),
        ({"settings": {"text.num_layers": 3}}, r"--set text.num_layers 3, in .* text.num_layers none"),
        ({"augment": ("flip",)}, r"--augment"),
        ({"grad_accum": 1}, r"--grad-accum 1, in .* 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_change_results_are_refused_with_both_values(
    squares: Path, changes: dict[str, Any], words: str
) -> None:
    crash(options(squares), 7)
    with pytest.raises(UsageError, match=words):
        Trainer(options(squares, resume="auto", **changes))


def test_options_that_change_no_result_may_differ(squares: Path) -> None:
    crash(options(squares), 7)
    finish(options(squares, resume="auto", save_every=7, keep=3, grad_checkpointing=True))
    finish(options(squares, "whole"))
    assert sha256(squares.parent / "out") == sha256(squares.parent / "whole")


def test_other_data_are_refused(squares: Path) -> None:
    crash(options(squares), 3)
    (squares / "0.txt").write_text("Another caption.\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"the saved run differs \(data sha256"):
        Trainer(options(squares, resume="auto"))


def test_a_run_at_a_constant_rate_can_be_made_longer(squares: Path) -> None:
    constant = {"schedule": "constant", "eval_every": 5}
    finish(options(squares, steps=10, **constant))
    finish(options(squares, resume="auto", **constant))
    finish(options(squares, "whole", **constant))
    assert sha256(squares.parent / "out") == sha256(squares.parent / "whole")


def test_half_written_and_damaged_steps_are_passed_over(squares: Path) -> None:
    run = options(squares, keep=3, resume="auto")
    crash(run, 7)
    steps = squares.parent / "out/checkpoints"
    shutil.copytree(steps / "step-000006", steps / ".step-000008.abcdefgh/step-000008")
    (steps / ".step-000008.abcdefgh/step-000008/complete.json").unlink()  # killed before the marker
    with (steps / "step-000006/training.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert next(iter(Trainer(run).run())).done == 4
    assert not list(steps.glob(".step-*"))


def test_a_step_that_was_about_to_take_the_place_of_another_is_taken(squares: Path) -> None:
    run = options(squares, resume="auto")
    crash(run, 7)
    steps = squares.parent / "out/checkpoints"
    (steps / ".step-000006.abcdefgh").mkdir()
    (steps / "step-000006").rename(steps / ".step-000006.abcdefgh/step-000006")
    Checkpoints(squares.parent / "out").tidy()
    assert is_whole(steps / "step-000006")


def test_the_newest_and_the_best_steps_are_kept(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter((1.0, 5.0, 4.0, 2.0, 3.0))
    run = options(squares, steps=10, eval_every=2, keep=2, keep_best=2)
    trainer = Trainer(run)
    score = trainer.task.score

    def ranked() -> Any:
        scores = score()
        object.__setattr__(scores, "rank", next(ranks))
        return scores

    monkeypatch.setattr(trainer.task, "score", ranked)
    events = list(trainer.run())
    assert [event.best for event in events if isinstance(event, Evaluated)] == [True, True, False, False, False]
    assert step_names(run.out) == ["step-000004", "step-000006", "step-000008", "step-000010"]


def test_a_kept_step_is_a_model_that_captions(squares: Path) -> None:
    finish(options(squares, steps=2))
    step = Captioner.load(squares.parent / "out/checkpoints/step-000002", device="cpu")
    assert len(step.caption([squares / "0.png"])) == 1


def test_a_wish_to_stop_is_granted_after_the_step_and_saved(squares: Path) -> None:
    whole, run, wish = options(squares, "whole"), options(squares, save_every=1000), StopWish()
    finish(whole)
    events = []
    for event in Trainer(run, wish).run():
        events.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            wish.make()
    assert events[-1] == Stopped(step=3, folder=run.out / "checkpoints/step-000003", wished=True)
    finish(options(squares, resume="latest"))
    assert sha256(run.out) == sha256(whole.out)


def test_a_wish_during_an_evaluation_leaves_it_to_the_run_that_goes_on(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run, wish = options(squares, "whole"), options(squares), StopWish()
    finish(whole)
    trainer = Trainer(run, wish)
    weights = dict(trainer.model.named_parameters())
    seen: list[torch.Tensor] = []

    def score() -> Any:
        seen.append(weights["text.tokens.weight"].clone())
        wish.make()

    monkeypatch.setattr(trainer.task, "score", score)
    events = list(trainer.run())
    assert isinstance(events[-1], Stopped) and events[-1].step == 6
    assert not torch.equal(seen[0], weights["text.tokens.weight"])  # the average was put away again
    assert not any(isinstance(event, Evaluated) for event in events)
    again = finish(options(squares, resume="latest"))
    assert [event.step for event in again if isinstance(event, Evaluated)] == [6, 12, 18, 20]
    assert_same_ends(whole, run)


def test_a_full_disk_in_mid_save_leaves_the_step_before_and_says_so(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = options(squares, "out")
    crash(run, 5)

    def full(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        words = (
            r"step-000006, No space left on device; .*step-000004 is whole\); make room, and go on with --resume auto"
        )
        with pytest.raises(OutputError, match=words):
            finish(options(squares, resume="auto"))
    assert step_names(run.out) == ["step-000004"]
    finish(options(squares, resume="auto"))
    finish(options(squares, "whole"))
    assert sha256(run.out) == sha256(squares.parent / "whole")


def test_files_that_may_not_grow_so_large_leave_the_step_before(squares: Path) -> None:
    crash(options(squares, eval_every=20), 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"step-000006, File too large.*; .*step-000004 is whole"):
            finish(options(squares, eval_every=20, resume="auto"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [is_whole(path) for path in (squares.parent / "out/checkpoints").iterdir()] == [True]


def test_two_runs_do_not_write_to_one_folder(squares: Path) -> None:
    first = Trainer(options(squares)).run()
    next(first)
    with pytest.raises(UsageError, match="another run writes there"):
        next(Trainer(options(squares)).run())
    first.close()  # type: ignore[attr-defined]
