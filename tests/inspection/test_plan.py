"""A dry run takes what the real run takes: the same work to the operation, nearly the same memory."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmt_cli.errors import UsageError
from mmt_cli.inspection.plan import BATCHES_AHEAD, fits, load_of, plan
from mmt_cli.inspection.rehearsal import Load
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import PRESETS, preset
from mmt_cli.training import batches

NAMES = ("mini", "modern", "seed-prefix", "git-base", "blip-base", "smolvlm-256m", "experts")
LOAD = Load(batch=2, prompt=3, new=6)


def counted(run: object) -> int:
    """Return FLOPs by torch's own counter, which knows attention as its plain products alone."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_work_is_what_torch_counts(tools: ModuleType, name: str) -> None:
    config: ModelConfig = tools.small_config(name)
    model, load = tools.build_model(config), LOAD
    pixels = tools.random_pixels(config, load.batch)
    expected = {"vision": counted(lambda: model.vision(pixels))}
    tower = model.vision(pixels)
    expected["connector"] = counted(lambda: model.connector(tower))
    image = model.see(pixels)
    places = [] if config.placeholder_id is None else [config.placeholder_id] * config.num_image_tokens
    ids = torch.tensor([[*places, *range(1, load.prompt + 1)]] * load.batch)
    capacity = ids.shape[1] + load.new
    expected["prefill"] = counted(lambda: model.prefill(ids, image, capacity=capacity))
    with torch.no_grad():
        _, cache = model.prefill(ids, image, capacity=capacity)
        for _ in range(load.new - 2):
            model.step(torch.ones(load.batch, 1, dtype=torch.long), cache)
            cache.advance(1)
    expected["step"] = counted(lambda: model.step(torch.ones(load.batch, 1, dtype=torch.long), cache))
    found = {phase.name: phase.flops for phase in plan(config, load).captioning if phase.name != "preprocessing"}
    assert found == expected


@pytest.mark.parametrize("name", ["cross", "seed", "git-base"])
def test_work_of_training_is_what_torch_counts(tools: ModuleType, name: str) -> None:
    config: ModelConfig = tools.small_config(name)
    model = tools.build_model(config).requires_grad_(True)
    ids = torch.ones(LOAD.batch, LOAD.prompt + LOAD.new, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits = model(ids, tools.random_pixels(config, LOAD.batch))
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, : logits.shape[1]].flatten())
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    found = plan(config, LOAD).training
    assert [phase.flops for phase in found] == [forward.get_total_flops(), backward.get_total_flops()]


@pytest.mark.slow
def test_every_model_can_be_planned(tools: ModuleType) -> None:
    for name in [*PRESETS, *tools.VARIANTS]:
        found = plan(tools.small_config(name), Load(batch=2, prompt=2, new=4, beams=2))
        assert all(phase.peak > 0 for phase in (*found.captioning, *found.training)), name
        assert found.captioning[-1].flops > 0, name


def test_the_cache_holds_keys_and_values_of_every_layer(tools: ModuleType) -> None:
    config = tools.small_config("cross")
    block = config.text.block
    found = plan(config, dataclasses.replace(LOAD, beams=3))
    # Beams of one image share its keys and values.
    slots = LOAD.batch * (3 * (LOAD.prompt + LOAD.new) + config.num_image_tokens)
    assert found.cache == 2 * config.text.num_layers * slots * block.kv_heads * block.head_width * 4


def test_a_step_reads_the_blocks_and_the_head_once(tools: ModuleType) -> None:
    config = tools.small_config("seed-prefix")
    one, two = (plan(config, dataclasses.replace(LOAD, batch=batch)).captioning[-1].nbytes for batch in (1, 2))
    model = tools.build_model(config)
    weights = sum(p.nbytes for p in [*model.blocks.parameters(), *model.head.parameters()])
    # Keys and values come on top of them, and rows of tables.
    assert weights < one < 1.5 * weights
    assert two - one < one - weights + 10_000


def test_activations_computed_again_take_time_and_save_memory() -> None:
    found = plan(preset("cross"), Load(batch=8, new=20))
    assert found.recomputed_peak < 0.6 * found.train_peak
    forward, backward = found.training
    assert found.recomputed[0].flops == forward.flops
    assert backward.flops < found.recomputed[1].flops <= backward.flops + forward.flops


@pytest.mark.slow
def test_a_larger_load_takes_more(tools: ModuleType) -> None:
    config = tools.small_config("cross")
    base = plan(config, LOAD)
    for change in ({"batch": 4}, {"image_size": 64}, {"new": 12}, {"prompt": 9}, {"beams": 4}):
        more = plan(config, dataclasses.replace(LOAD, **change))
        assert sum(p.flops for p in more.captioning) > sum(p.flops for p in base.captioning), change
    half = plan(config, dataclasses.replace(LOAD, dtype=torch.bfloat16))
    assert half.weights * 2 == base.weights
    assert half.cache * 2 == base.cache


def test_tiles_are_read_together(tools: ModuleType) -> None:
    config = tools.small_config("smolvlm-256m")
    found, whole = (plan(config, dataclasses.replace(LOAD, tiles=tiles)) for tiles in (5, 1))
    assert found.captioning[1].flops == 5 * whole.captioning[1].flops


@pytest.mark.slow
def test_what_fits_grows_with_the_memory_and_is_what_a_plan_of_it_takes() -> None:
    config = preset("cross")
    rows = fits(config, Load(batch=2))
    assert [row.gigabytes for row in rows] == [8, 16, 24, 80]
    for kind in ("caption", "train", "recomputed"):
        counts = [getattr(row, kind) for row in rows]
        assert counts == sorted(counts)
    most = rows[0].train
    assert plan(config, Load(batch=most)).train_peak <= 8e9 < plan(config, Load(batch=most + 2)).train_peak


def test_options_name_the_load() -> None:
    load = load_of(preset("mini"), {"--batch-size": 3, "--gen-tokens": 7}, "bfloat16")
    assert (load.batch, load.new, load.dtype, load.prompt) == (3, 7, torch.bfloat16, 1)
    assert load_of(preset("mini"), {}, "auto") == Load()
    assert load_of(preset("tiny"), {"--prompt-tokens": 40}, "auto").new == preset("tiny").text.max_length - 39


def test_what_the_model_cannot_read_is_refused() -> None:
    with pytest.raises(UsageError, match="too long"):
        plan(preset("mini"), Load(prompt=4000, new=40))
    with pytest.raises(UsageError, match="patches do not tile"):
        plan(preset("cross"), Load(image_size=100))


MEASURE = """
import sys, torch
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.stepper import build_stepper
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.inputs.preprocess import normalise
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def run(batch):
    samples = torch.zeros(batch, how.height, how.width, 3, dtype=torch.uint8)
    places = [] if config.placeholder_id is None else [config.placeholder_id] * config.num_image_tokens
    with inference(model):
        pixels = normalise(samples, how)
        image = model.see(pixels)
        del pixels
        stepper = build_stepper(model, image, [[*places, 1]] * batch, 20)
        logits = stepper.start()
        for _ in range(19):
            logits.log_softmax(-1).add(1.0)
            logits = stepper.step(torch.ones(batch, dtype=torch.long))

torch.set_num_threads(1)
config = preset(sys.argv[1])
how = default_preprocessing(config)
model = MultimodalTransformer(config).eval()
run(1)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
run(int(sys.argv[2]))
print(status("VmHWM") - before)
"""


# The C library's heap keeps what was let go, a quarter more or less as it comes: so each tensor gets pages of its own.
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("mini", 16),
        ("modern", 16),
        ("cross", 96),
        ("seed-prefix", 12),
        ("blip-base", 8),
        ("git-base", 8),
        ("window", 16),
    ],
)
def test_captioning_takes_the_memory_that_is_planned(name: str, batch: int) -> None:
    """Growth of the process above the weights, with what a first run of one image leaves behind taken off."""
    command = [sys.executable, "-c", MEASURE, name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | PAGES)
    measured = int(done.stdout)
    found = plan(preset(name), Load(batch=batch, new=20))
    planned = found.caption_peak - found.weights
    assert planned == pytest.approx(measured, rel=0.15), (planned, measured)


def test_as_many_batches_are_read_ahead_as_training_reads() -> None:
    assert BATCHES_AHEAD == batches.BATCHES_AHEAD


TRAIN = """
import gc, json, sys, torch
from pathlib import Path
from mmt_cli.training.events import Started, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
data, preset, batch, recomputed = sys.argv[1:]
options = TrainOptions(
    data=(data,), out=Path(data, "out"), preset=preset, batch_size=int(batch), steps=4,
    grad_checkpointing=recomputed == "True", device="cpu",
)
trainer, steps = Trainer(options), 0
for event in trainer.run():
    if isinstance(event, Started):
        gc.collect()
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")
    elif isinstance(event, Stepped):
        steps += 1
        if steps == 3:  # the optimizer has made its averages in the first
            break
print(json.dumps({"peak": status("VmHWM") - before, "config": trainer.model.config.to_json()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("name", "batch"),
    [("mini", 8), ("modern", 16), ("cross", 16), ("seed-prefix", 8), ("experts", 8), ("git-base", 4), ("vit-gpt2", 4)],
)
def test_training_takes_the_memory_that_is_planned(tmp_path: Path, name: str, batch: int, recomputed: bool) -> None:
    """Growth of the process above the weights, over three steps of a real run."""
    photos = sorted((Path(__file__).parent.parent / "data").glob("*.jpg"))
    text = "a brown dog runs over the green grass with red ball in its mouth while two small children look"
    for index in range(6 * batch):
        shutil.copy(photos[index % len(photos)], tmp_path / f"{index:03}.jpg")
        (tmp_path / f"{index:03}.txt").write_text(text)
    command = [sys.executable, "-c", TRAIN, str(tmp_path), name, str(batch), str(recomputed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | PAGES)
    found = json.loads(done.stdout.splitlines()[-1])
    # A begin token, and one for each word, as common as these are.
    planned = plan(ModelConfig.from_json(found["config"]), Load(batch=batch, prompt=1, new=len(text.split())))
    peak = (planned.recomputed_peak if recomputed else planned.train_peak) - planned.weights
    assert peak == pytest.approx(found["peak"], rel=0.15), (peak, found["peak"])
