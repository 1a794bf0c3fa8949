"""Several processes that train one model: the same as one with larger batches, and as sure never to lose a run."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.cli.outcome import describe
from mmt_cli.errors import DataError, ToldElsewhereError, UsageError
from mmt_cli.training.checkpoints import Checkpoints, is_whole
from mmt_cli.training.distributed import World, joined
from mmt_cli.training.events import Started, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.parallel import Sharded
from mmt_cli.training.state import check_same, identity

WORKER = """
import dataclasses, json, pickle, sys
from mmt_cli.errors import DivergedError
from mmt_cli.training.distributed import joined
from mmt_cli.training.events import Stepped
from mmt_cli.training.loop import Trainer

runs = pickle.load(open(sys.argv[1], "rb"))
with joined(runs[0][0]) as (world, placed):
    for options, steps, poisoned in runs:
        here = dataclasses.replace(options, device="cpu", processes=world.size)
        trainer = Trainer(here, world=world)
        learn, seen = trainer.learner.learn, []
        def watched(batches, step, lr):
            seen.extend(key for batch in batches for key in batch.keys)
            if poisoned == (world.rank, step):
                batches = [dataclasses.replace(batch, images=batch.images.float() * float("nan")) for batch in batches]
            return learn(batches, step, lr)
        trainer.learner.learn = watched
        events, diverged = trainer.run(), ""
        try:
            for event in events:
                if isinstance(event, Stepped) and event.step == steps:
                    break
        except DivergedError as error:
            diverged = str(error)
        events.close()
        world.meet()
        name = f"{options.out}.{steps}.{world.rank}.json"
        json.dump({"keys": seen, "diverged": diverged}, open(name, "w"))
"""


PARTED = """
import os, pathlib, pickle, sys
from mmt_cli.training.distributed import joined

def loops():
    names = [(thread / "comm").read_text().strip() for thread in pathlib.Path("/proc/self/task").iterdir()]
    return names.count("pt_gloo_runloop")

with joined(pickle.loads(bytes.fromhex(sys.argv[1]))) as (world, placed):
    world.total([1.0])
    assert loops()
assert not loops(), loops()
"""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {
        **os.environ,
        **{name: str(value) for name, value in told.items()},
        "TORCHELASTIC_RUN_ID": "test",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }


def start(*arguments: str, size: int = 2) -> list[subprocess.Popen[str]]:
    """Start a team of Python processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *arguments]
    return [subprocess.Popen(command, text=True, env=environment(rank, size, port), **pipes) for rank in range(size)]


def end(team: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, stdout and stderr of each process."""
    written = [process.communicate(timeout=600) for process in team]
    return [(process.returncode, *texts) for process, texts in zip(team, written, strict=True)]


def work(runs: list[tuple[TrainOptions, int | None, tuple[int, int] | None]], size: int = 2) -> None:
    """Have a team do these runs one after the other: options, the step after which it ends, rank and step of a NaN."""
    asked = runs[0][0].out.with_suffix(".pickle")
    asked.write_bytes(pickle.dumps(runs))
    for code, _, errors in end(start("-c", WORKER, str(asked), size=size)):
        assert code == 0, errors


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads")
def test_no_thread_of_a_team_outlives_it_though_its_world_does(tmp_path: Path) -> None:
    """One that frees a tensor while Python ends aborts the process: seen, rarely, on a busy machine."""
    asked = pickle.dumps(options(tmp_path, "out")).hex()
    for code, _, errors in end(start("-c", PARTED, asked)):
        assert code == 0, errors


def draw_squares(folder: Path, count: int = 13) -> None:
    folder.mkdir()
    for index in range(count):
        PIL.Image.new("RGB", (40, 32), (250, 20 * index, 0)).save(folder / f"{index}.png")
        # Captions of unlike lengths: the mean over all words is no mean of the processes' means.
        (folder / f"{index}.txt").write_text("A red square" + " on red" * (index % 4) + ".\n", encoding="utf-8")
    line = json.dumps({"image": "0.png", "caption": "A red square."})
    (folder / "val.jsonl").write_text(line, encoding="utf-8")


def options(folder: Path, out: str, **changes: Any) -> TrainOptions:
    """A run without chance."""
    defaults: dict[str, Any] = {
        "data": (str(folder / "squares"),),
        "out": folder / out,
        "preset": "tiny",
        "steps": 8,
        "batch_size": 2,
        "grad_accum": 2,
        "grad_clip": 100.0,
        "ema": 0.9,
        "dropout": 0.0,
        "lr": 5e-3,
        "warmup": 2,
        "schedule": "linear",
        "save_every": 2,
        "keep": 9,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def chance(folder: Path, out: str, **changes: Any) -> TrainOptions:
    """A run in which all that could differ after a kill is on."""
    val = (str(folder / "squares/val.jsonl"),)
    return options(folder, out, dropout=0.1, val=val, eval_every=3, parallel="ddp", **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained."""
    folder = tmp_path_factory.mktemp("team")
    draw_squares(folder / "squares")
    work(
        [
            (options(folder, "ddp", parallel="ddp"), None, None),
            (options(folder, "fsdp", parallel="fsdp"), None, None),
            (chance(folder, "whole"), None, None),
            (chance(folder, "cut"), 5, None),
            (chance(folder, "cut", resume="auto"), None, None),
            (options(folder, "nan", parallel="ddp"), None, (1, 5)),
        ]
    )
    list(Trainer(options(folder, "one", batch_size=4)).run())
    return folder


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def told(folder: Path, out: str, steps: int | None = None) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{out}.{steps}.{rank}.json").read_text()) for rank in (0, 1)]


def assert_close(one: Path, other: Path) -> None:
    torch.testing.assert_close(losses(one), losses(other), rtol=1e-4, atol=1e-5)
    # All weights at once: AdamW makes steps of some that have no gradient but for rounding, such as biases of keys.
    weights = [torch.cat([tensor.flatten() for tensor in model(folder).values()]) for folder in (one, other)]
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[1].norm()


@pytest.mark.parametrize("out", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does_from_batches_twice_as_large(done: Path, out: str) -> None:
    assert len(losses(done / "one")) == 8
    assert_close(done / out, done / "one")


def test_gradients_are_as_large_as_those_of_one_process(done: Path) -> None:
    states = [load_file(done / out / "checkpoints/step-000008/training.safetensors") for out in ("ddp", "one")]
    moments = [
        torch.cat([state[name].flatten() for name in sorted(state) if name.startswith("optimizer.exp_avg.")])
        for state in states
    ]
    assert (moments[0] - moments[1]).norm() < 1e-3 * moments[1].norm()


def test_each_example_is_seen_once_an_epoch_by_one_of_the_processes(done: Path) -> None:
    shares = [found["keys"] for found in told(done, "ddp")]
    # 13 images in steps of 8: the second one of an epoch has 5, in the batches 4 and 1, which joins it. So 4 epochs.
    assert Counter(shares[0] + shares[1]) == {str(done / f"squares/{index}.png"): 4 for index in range(13)}
    assert abs(len(shares[0]) - len(shares[1])) <= 4


def test_a_team_that_goes_on_ends_at_the_same_bits(done: Path) -> None:
    names = ("whole", "cut")
    weights = [(done / name / "model.safetensors").read_bytes() for name in names]
    assert weights[0] == weights[1]
    assert losses(done / "whole") == losses(done / "cut")


def test_one_process_alone_writes(done: Path) -> None:
    assert [line["step"] for line in map(json.loads, (done / "ddp/metrics.jsonl").read_text().splitlines())] == [
        *range(1, 9)
    ]
    assert "batch size: 8" in (done / "ddp/README.md").read_text()


def test_all_agree_that_a_loss_is_no_number_and_the_message_names_the_images_of_all(done: Path) -> None:
    found = told(done, "nan")
    assert found[0]["diverged"] == found[1]["diverged"]
    assert "diverged at step 5" in found[0]["diverged"]
    named = [key for key in found[0]["keys"][-4:] + found[1]["keys"][-4:] if key in found[0]["diverged"]]
    assert len(named) == 8
    assert Checkpoints(done / "nan").newest == done / "nan/checkpoints/step-000004"


@pytest.mark.parametrize("out", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_have_stopped(done: Path, tmp_path: Path, out: str) -> None:
    shutil.copytree(done / out / "checkpoints/step-000004", tmp_path / "out/checkpoints/step-000004")
    run = dataclasses.replace(options(done, out, batch_size=4, resume="latest"), out=tmp_path / "out")
    events = list(Trainer(run).run())
    assert isinstance(events[0], Started) and events[0].done == 4
    assert sum(isinstance(event, Stepped) for event in events) == 4
    assert_close(tmp_path / "out", done / "one")


def test_steps_of_as_many_examples_are_the_same_at_any_number_of_processes(tmp_path: Path) -> None:
    two = identity(options(tmp_path, "out", processes=2))
    check_same(two, identity(options(tmp_path, "out", batch_size=4)), tmp_path)
    check_same(two, identity(options(tmp_path, "out", batch_size=1, grad_accum=1, processes=8)), tmp_path)
    words = r"--batch-size x --grad-accum x processes 4, in .* 8"
    with pytest.raises(UsageError, match=words):
        check_same(two, identity(options(tmp_path, "out")), tmp_path)
    with pytest.raises(UsageError, match=r"the saved run differs \(--batch-size 4, in .* 2"):
        check_same(two, identity(options(tmp_path, "out", batch_size=4, grad_accum=1, processes=2)), tmp_path)


@pytest.mark.parametrize(("count", "processes", "steps"), [(16, 2, 2), (17, 2, 2), (18, 2, 3), (3, 4, 1), (17, 1, 5)])
def test_an_epoch_has_as_many_steps_as_the_plan_cuts_it_into(
    tmp_path: Path, count: int, processes: int, steps: int
) -> None:
    assert options(tmp_path, "out", processes=processes).steps_an_epoch(count) == steps


def test_one_process_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with (
        pytest.raises(UsageError, match=r"--parallel fsdp, not started by torchrun"),
        joined(options(tmp_path, "out", parallel="fsdp")),
    ):
        pass
    with joined(options(tmp_path, "out")) as (world, placed):
        assert type(world) is World
        assert placed.parallel is None


def test_a_team_does_not_share_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with (
        pytest.raises(UsageError, match=r"--device cuda:1, started by torchrun"),
        joined(options(tmp_path, "out", device="cuda:1")),
    ):
        pass


def test_a_model_with_a_parameter_of_one_number_has_no_shares(done: Path) -> None:
    run = options(done, "none", objective="caption+contrastive")
    objective = Trainer(run).learner.objective
    with pytest.raises(UsageError, match=r"--parallel fsdp, model.contrastive.log_scale\); use --parallel ddp"):
        Sharded(objective, torch.device("cpu"))


def test_what_another_process_tells_is_not_told_again() -> None:
    ended = describe(ToldElsewhereError(DataError("no data")))
    assert (ended.code, ended.line) == (DataError.exit_code, None)


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    recipe = "--preset tiny --steps 24 -b 2 --ema 0.9 --dropout 0.1 --lr 5e-3 --warmup 4 --save-every 1 --device cpu"
    return ["-m", "mmt_cli", "train", str(folder / "squares"), "--out", str(folder / out), *recipe.split(), *more]


def wait_for_step(out: Path, step: int) -> None:
    """Wait until a run has come so far."""
    deadline = time.monotonic() + 300
    while not any(path.name >= f"step-{step:06d}" for path in (out / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes that nothing cut short."""
    folder = tmp_path_factory.mktemp("kills")
    draw_squares(folder / "squares")
    found = end(start(*arguments(folder, "whole")))
    assert [code for code, _, _ in found] == [0, 0]
    assert [out for _, out, _ in found] == [f"{folder / 'whole'}\n", ""]
    assert "24 steps" in found[0][2]
    assert found[1][2] == ""
    return folder


def assert_goes_on(folder: Path, out: str) -> None:
    assert 0 < len(list((folder / out / "checkpoints").glob("step-*"))) < 24
    assert [code for code, _, _ in end(start(*arguments(folder, out, "--resume", "auto")))] == [0, 0]
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", out)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killing_one_of_two_processes_changes_no_bit(whole: Path, rank: int) -> None:
    team = start(*arguments(whole, f"killed{rank}"))
    wait_for_step(whole / f"killed{rank}", 7)
    team[rank].send_signal(signal.SIGKILL)
    code, _, errors = end(team)[1 - rank]
    assert code == 1
    assert "mmt: error: another process of this run is gone" in errors
    assert_goes_on(whole, f"killed{rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_ends_all_after_the_same_step(whole: Path, rank: int) -> None:
    out = f"stopped{rank}"
    team = start(*arguments(whole, out))
    wait_for_step(whole / out, 5)
    team[rank].send_signal(signal.SIGTERM)
    found = end(team)
    assert [code for code, _, _ in found] == [143, 143]
    newest = Checkpoints(whole / out).newest
    assert newest is not None and is_whole(newest)
    assert "".join(errors for _, _, errors in found).count(f"step {int(newest.name[5:])} is saved; go on") == 1
    assert_goes_on(whole, out)


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all_and_is_told_once(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "squares", tmp_path / "squares")
    (tmp_path / "squares/3.png").write_bytes((tmp_path / "squares/3.png").read_bytes()[:60])
    found = end(start(*arguments(tmp_path, "out")))
    assert 5 in [code for code, _, _ in found]
    lines = [line for _, _, errors in found for line in errors.splitlines() if "error" in line]
    assert len(lines) == 1 and "3.png" in lines[0]


@pytest.mark.slow
def test_shares_are_kept_and_go_on_in_any_number_of_processes(whole: Path) -> None:
    def run(out: str, **changes: Any) -> TrainOptions:
        more: dict[str, Any] = {"lora": 2, "freeze": "vision"} | changes
        return options(whole, out, parallel="fsdp", **more)

    work([(run("fsdp"), None, None), (run("again"), 5, None), (run("again", resume="auto"), None, None)])
    assert (whole / "fsdp/model.safetensors").read_bytes() == (whole / "again/model.safetensors").read_bytes()
    steps = whole / "fsdp/checkpoints"
    assert len(list((steps / "step-000004/training").iterdir())) == 2
    assert len(Captioner.load(steps / "step-000004", device="cpu").caption([whole / "squares/0.png"])) == 1
    # Four processes: some have no share of the smallest tensors.
    shutil.copytree(steps / "step-000004", whole / "four/checkpoints/step-000004")
    work([(run("four", resume="latest", batch_size=1), None, None)], size=4)
    assert_close(whole / "four", whole / "fsdp")
    # Each process has all again, and shares of what one process wrote.
    shutil.copytree(steps / "step-000004", whole / "ddp/checkpoints/step-000004")
    work([(dataclasses.replace(run("ddp", resume="latest"), parallel="ddp"), None, None)])
    assert_close(whole / "ddp", whole / "fsdp")
    shutil.copytree(whole / "ddp/checkpoints/step-000006", whole / "shared/checkpoints/step-000006")
    work([(run("shared", resume="latest"), None, None)])
    assert_close(whole / "shared", whole / "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "masked"},
        {"freeze": "vision", "cache_features": True},
        {"grad_checkpointing": True, "precision": "bfloat16"},
        {"precision": "float16"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_every_recipe_is_trained_in_shares(whole: Path, changes: dict[str, Any]) -> None:
    name = "-".join(map(str, changes.values()))
    val = (str(whole / "squares/val.jsonl"),)
    runs = [options(whole, f"{name}-{kind}", parallel=kind, val=val, **changes) for kind in ("ddp", "fsdp")]
    work([(run, None, None) for run in runs])
    torch.testing.assert_close(losses(runs[0].out), losses(runs[1].out), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_torchrun_starts_the_same_command(whole: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [str(torchrun), "--nproc-per-node", "2", *arguments(whole, "torchrun")]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{whole / 'torchrun'}\n"
    weights = [(whole / name / "model.safetensors").read_bytes() for name in ("whole", "torchrun")]
    assert weights[0] == weights[1]
