"""`mmt caption` as a process of its own: signals, kills, pipes and full disks."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.cli.outcome import EndedBySignal
from mmt_cli.cli.stopping import Stopping
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset

PHOTOS = sorted((Path(__file__).parent.parent / "data").glob("*.jpg"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tools):
    """A tiny model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(["A dog runs over the grass.", "A man on a horse."], 300)
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


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmt_cli", "caption", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.fixture
def slow_list(tmp_path):
    """A list that comes through a pipe and never ends: one photo is named."""
    path = tmp_path / "list"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "mmt: interrupted"),
        (signal.SIGTERM, 143, "mmt: terminated"),
    ],
)
def test_a_signal_while_nothing_is_in_work_ends_the_run_with_what_is_done(
    checkpoint, tmp_path, slow_list, number, code, line
):
    out = tmp_path / "out"
    run = start("--files-from", slow_list, "-m", checkpoint, "-o", out)
    with slow_list.open("wb", buffering=0) as names:
        names.write(os.fsencode(PHOTOS[0]) + b"\n" + os.fsencode(PHOTOS[1]) + b"\n")
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") == 2)
        run.send_signal(number)
        _, err = run.communicate(timeout=30)
    assert run.returncode == code
    assert err.decode().splitlines()[-1].startswith(line)
    assert "mmt: 2 captioned, 0 failed" in err.decode()
    assert "Traceback" not in err.decode()


def test_the_first_signal_waits_for_the_batch_and_says_how_to_go_on():
    with Stopping() as stopping:
        with stopping.busy():
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping.requested
        with pytest.raises(EndedBySignal, match="with --resume"):
            stopping.end("the same command with --resume goes on")


def test_a_second_signal_does_not_wait():
    with Stopping() as stopping, stopping.busy():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(EndedBySignal, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_not_stopped_ends_as_ever():
    before = signal.getsignal(signal.SIGINT)
    with Stopping() as stopping, stopping.busy():
        assert not stopping.requested
        assert signal.getsignal(signal.SIGINT) != before
    stopping.end("")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_reader_that_leaves_ends_the_run_quietly(checkpoint):
    run = start(*PHOTOS * 20, "-m", checkpoint, "-b", "1")
    assert run.stdout.readline().count(b"\t") == 1
    run.stdout.close()
    err = run.stderr.read().decode()
    assert run.wait(30) in (141, 0)
    assert "error" not in err
    assert "Traceback" not in err


def test_two_runs_do_not_write_one_file(checkpoint, tmp_path, slow_list):
    out = tmp_path / "out"
    first = start("--files-from", slow_list, "-m", checkpoint, "-o", out)
    with slow_list.open("wb", buffering=0) as names:
        names.write(os.fsencode(PHOTOS[0]) + b"\n")
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") == 1)
        second = start(PHOTOS[1], "-m", checkpoint, "-o", out)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2
        assert b"another run writes" in err
    _, err = first.communicate(timeout=30)
    assert first.returncode == 0
    assert out.read_bytes().count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_run_that_is_killed_a_dozen_times_has_each_record_once_and_in_order(checkpoint, tmp_path, kind):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for index in range(400):
        shutil.copy(PHOTOS[index % len(PHOTOS)], folder / f"{index}.jpg")
    command = (folder, "-m", checkpoint, "-o", out, "-f", kind, "--resume", "-b", "4")
    draw = random.Random(7)
    kills = 0
    while kills < 12:
        run = start(*command)
        size = out.stat().st_size if out.exists() else 0
        wait_for(lambda run=run, size=size: run.poll() is not None or (out.exists() and out.stat().st_size > size))
        time.sleep(draw.random() * 0.05)
        kills += run.poll() is None
        assert run.poll() is None, run.communicate()[1]
        run.kill()
        run.communicate()
    last = start(*command)
    _, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    names = [f"{folder}/{index}.jpg" for index in range(400)]
    if kind == "jsonl":
        assert [json.loads(line)["path"] for line in out.read_bytes().splitlines()] == names
    else:
        assert [line.partition(",")[0] for line in out.read_text().splitlines()[1:]] == names


def test_errors_of_the_run_reach_stderr_alone(checkpoint, tmp_path):
    run = start(tmp_path / "gone.jpg", PHOTOS[0], tmp_path, "-m", checkpoint)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 3
    assert out.count(b"\n") == 1
    assert err.count(b"\n") == 2
