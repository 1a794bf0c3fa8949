"""Every preset through the command line: it learns, captions, and can be measured and looked at.

Shrunken; the slow test trains them as they are.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

from mmt_cli.model.presets import PRESETS, preset
from mmt_cli.model.transformer import MultimodalTransformer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
LEARNED = 0.15  # nats; a model that stays as it was loses 0.01 at most, one that learns gains twice this
RECIPE = ("--steps", "30", "-b", "6", "--eval-every", "30", "--warmup", "3", "--dropout", "0", "--label-smoothing", "0")
ON_CPU = ("--device", "cpu", "-q")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    for index in range(12):
        name = list(COLOURS)[index % 3]
        PIL.Image.new("RGB", (40, 32), COLOURS[name]).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"A {name} square .\nThis is a {name} square .\n", encoding="utf-8")
    return folder


@pytest.fixture
def small(tools):
    """Return a function that gives the options which make a preset small."""

    def options(name):
        settings = tools.SMALL.get(name, {}).items()
        return [word for key, value in settings for word in ("--set", f"{key}={json.dumps(value)}")]

    return options


@pytest.fixture
def train(mmt, squares, small, tmp_path):
    """Return a function that trains a small preset into a folder, and gives the mean losses of each ten steps."""

    def run(name, lr):
        out = tmp_path / f"{name}-{lr}"
        done = mmt("train", str(squares), "-o", str(out), "--preset", name, *small(name), *RECIPE, "--lr", lr, *ON_CPU)
        assert (done.code, done.out, done.err) == (0, f"{out}\n", "")
        return out, logged_losses(out)

    return run


def logged_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", PRESETS)
def test_thirty_steps_lower_the_loss_and_the_checkpoint_captions(mmt, train, squares, tools, name):
    out, (first, *_, last) = train(name, "5e-3")
    if not tools.small_config(name).cacheable:
        # One word a caption, drawn anew at each step: only the loss on the same words without learning compares.
        _, (*_, first) = train(name, "0")
    assert last < first - LEARNED
    captioned = mmt("caption", str(squares / "0.png"), "-m", str(out), "--max-new-tokens", "6", "-f", "jsonl", *ON_CPU)
    assert captioned.code == 0, captioned.err
    record = json.loads(captioned.out)
    assert record["error"] is None
    assert record["tokens"]
    assert math.isfinite(record["logprob"])
    inspected = json.loads(mmt("inspect", str(out), "-f", "json", "-q").out)
    assert sum(module["parameters"] for module in inspected["modules"]) == inspected["parameters"] > 0


def test_nothing_learned_lowers_no_loss(train):
    """The check above can fail."""
    _, losses = train("cross", "0")
    assert max(losses) - min(losses) < LEARNED / 10


@pytest.mark.parametrize("phase", ["caption", "train"])
@pytest.mark.parametrize("name", PRESETS)
def test_bench_measures_it(mmt, small, name, phase):
    once = ("-r", "1", "--warmup", "0", "--gen-tokens", "2", "--prompt-tokens", "2")
    done = mmt("bench", f"preset:{name}", *small(name), "--phase", phase, *once, "-f", "json", *ON_CPU)
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    assert {"caption": "decode", "train": "backward"}[phase] in {timed["name"] for timed in record["phases"]}
    for timed in record["phases"]:
        assert all(0 < ms < math.inf for ms in timed["samples_ms"])
        assert timed["samples_ms"]
    modules = {layer["name"] for layer in record["layers"] if layer["flops"] > 0}
    assert any(module.startswith("blocks.") for module in modules)
    assert any(module.startswith("vision") for module in modules)
    speed = record["summary"]
    assert 0 < speed["images_per_s"] < math.inf
    assert speed["peak_memory_bytes"] > 0


@pytest.mark.parametrize("shrunken", [True, False], ids=["small", "full-size"])
@pytest.mark.parametrize("name", PRESETS)
def test_inspect_counts_what_torch_counts(mmt, small, tools, name, shrunken):
    with torch.device("meta"):
        model = MultimodalTransformer(tools.small_config(name) if shrunken else preset(name))
    arguments = small(name) if shrunken else ()
    done = mmt("inspect", f"preset:{name}", *arguments, "-f", "json")
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert sum(module["parameters"] for module in record["modules"]) == record["parameters"]
    assert {module["modality"] for module in record["modules"]} >= {"vision", "text"}


@pytest.mark.slow
@pytest.mark.skipif("MMT_TEST_DATA" not in os.environ, reason="needs the shards of Flickr8k")
@pytest.mark.parametrize("name", PRESETS)
def test_thirty_steps_at_full_size_lower_the_loss(tmp_path, name):
    """In a process of its own, as a user runs it; MMT_TEST_STEPS takes fewer steps."""
    shard = Path(os.environ["MMT_TEST_DATA"]) / "flickr8k/dev-000.tar"
    steps = os.environ.get("MMT_TEST_STEPS", "30")
    out = tmp_path / "out"
    recipe = ("--steps", steps, "-b", "4", "--eval-every", steps, "--warmup", "5", "--lr", "5e-4")
    command = [sys.executable, "-m", "mmt_cli", "train", str(shard), "-o", str(out), "--preset", name, *recipe, *ON_CPU]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_800)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = logged_losses(out)
    assert last < first
