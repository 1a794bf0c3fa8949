import hashlib
import math

import pytest
import torch
from torch.nn import functional

from mmt_cli.benchmark.layers import Stopwatch, WallClock
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.results import HOOKS, UNATTRIBUTED, PhaseTimes
from mmt_cli.benchmark.run import run_benchmark
from mmt_cli.benchmark.subject import opened
from mmt_cli.benchmark.train import IGNORED, TrainWorkload
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError

QUICK = {"models": ("preset:tiny",), "phase": "train", "repetitions": 2, "warmup": 0, "device": "cpu"}
QUICK |= {"gen_tokens": (4,)}
PHASES = ["forward", "backward", "optimizer", "train"]


@pytest.fixture(scope="module")
def report():
    return run_benchmark(BenchOptions(**QUICK, batch_sizes=(3, 1))).to_json()


def of(report, phase, batch_size=3):
    return [row for row in report["layers"] if (row["phase"], row["batch_size"]) == (phase, batch_size)]


def workload(batch_size=3, **options):
    options = BenchOptions(**QUICK | options, batch_sizes=(batch_size,))
    (case,) = options.cases("preset:tiny")
    with opened(case.model, options) as subject:
        return TrainWorkload(subject.captioner, options, case)


@pytest.fixture
def save(tools, tmp_path):
    """Return a function that saves a small model and gives its folder."""

    def save(name):
        model = tools.build_model(tools.small_config(name))
        save_checkpoint(
            tmp_path / name,
            model,
            tokenizer=None,
            preprocessing=default_preprocessing(model.config),
            generation=GenerationOptions(),
            card="",
        )
        return tmp_path / name

    return save


def test_every_phase_is_sampled_once_a_step(report):
    assert [(row["batch_size"], row["name"]) for row in report["phases"]] == [(b, n) for b in (3, 1) for n in PHASES]
    assert {len(row["samples_ms"]) for row in report["phases"]} == {2}


def test_phases_add_up_to_the_step_and_layers_to_forward(report):
    assert [row["name"] for row in of(report, "train")] == [*PHASES[:3], UNATTRIBUTED]
    for phase in report["phases"]:
        rows = of(report, phase["name"], phase["batch_size"])
        if phase["name"] in ("train", "forward"):
            assert sum(row["median_ms"] for row in rows) == pytest.approx(phase["median_ms"])
            assert sum(row["share"] for row in rows) == pytest.approx(1)
        else:
            assert rows == []


def test_forward_shows_the_layers_of_the_whole_model(report):
    names = ["vision.embedding", "vision.blocks.0", "vision.norm", "text", "blocks.0", "blocks.1", "head"]
    assert [row["name"] for row in of(report, "forward")] == [*names, HOOKS, UNATTRIBUTED]


def test_work_is_counted_forward_and_backward(report):
    for batch_size in (3, 1):
        forward, backward, optimizer, rest = (row["flops"] for row in of(report, "train", batch_size))
        assert forward == sum(row["flops"] for row in of(report, "forward", batch_size))
        # Each product has two gradients, but for the patches', which have none for the pixels.
        (patches,) = (r["flops"] for r in of(report, "forward", batch_size) if r["name"] == "vision.embedding")
        assert backward == 2 * forward - patches
        assert optimizer == rest == 0
        (total,) = (s["flops"] for s in report["summaries"] if s["batch_size"] == batch_size)
        assert total == forward + backward
    weights = {row["name"]: row["bytes"] for row in of(report, "train")}
    assert weights["optimizer"] == 4 * report["summary"]["parameters"]


def test_summary_counts_images_and_learned_tokens(report):
    step = {row["batch_size"]: row["median_ms"] for row in report["phases"] if row["name"] == "train"}
    for summary in report["summaries"]:
        size = summary["batch_size"]
        assert summary["images_per_s"] == pytest.approx(1000 * size / step[size])
        assert summary["tokens_per_s"] == pytest.approx(6 * summary["images_per_s"])  # two of prompt, four new
        assert summary["ttft_ms"] is None
        assert summary["parameters"] == 43_584
    assert report["settings"]["phase"] == "train"


def test_checkpoint_is_trained_in_memory_alone(save):
    folder = save("tiny")

    def state():
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}

    before = state()
    found = run_benchmark(BenchOptions(**QUICK | {"models": (str(folder),)})).to_json()
    assert [row["name"] for row in found["phases"]] == PHASES
    assert state() == before


def test_model_with_one_readout_learns_one_token_a_row(save):
    found = run_benchmark(BenchOptions(**QUICK | {"models": (str(save("seed")),)}, batch_sizes=(2,))).to_json()
    assert found["summary"]["tokens_per_s"] == pytest.approx(found["summary"]["images_per_s"])


def test_loss_is_the_mean_cross_entropy_of_all_targets():
    work = workload()
    work.model.eval()
    assert (work.token_ids_BT.shape, work.target_BT.shape) == ((3, 6), (3, 6))
    assert not torch.equal(work.token_ids_BT, work.target_BT)
    logits_BTV = work.model(work.token_ids_BT, work.pixels_BCHW)
    expected = functional.cross_entropy(logits_BTV.transpose(1, 2), work.target_BT)
    assert work.loss().item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() == pytest.approx(math.log(300), rel=0.2)  # of random targets


def test_placeholders_are_read_but_not_learned():
    work = workload(settings={"fusion": {"kind": "splice"}}, prompt_tokens=(28,))
    assert work.token_ids_BT.shape == (3, 48)  # the whole context: 16 places of the image, 28 + 4 words
    assert (work.target_BT != IGNORED).sum(dim=1).tolist() == [32] * 3
    times = PhaseTimes(name="train", case=work.case, samples_ms=(1000.0,))
    assert work.tokens_per_s({"train": times}) == 3 * 32
    assert work.loss().isfinite()
    with pytest.raises(UsageError, match="context is 48, 16 of it the image's"):
        workload(settings={"fusion": {"kind": "splice"}}, prompt_tokens=(29,))


def test_dropout_is_on():
    first, second = (work.loss().item() for work in [workload(settings={"text.block.dropout": 0.5})] for _ in "ab")
    assert first != second


def test_every_weight_is_trained_by_an_optimizer_that_leaves_it_as_it_is():
    work = workload()
    before = {name: weight.clone() for name, weight in work.model.named_parameters()}
    for _ in range(2):
        work.run(Stopwatch(WallClock()))
    for name, weight in work.model.named_parameters():
        state = work.optimizer.state[weight]
        assert state["step"] == 2, name
        assert torch.equal(weight, before[name]), name
        assert weight.grad is None, name
    moved = {n for n, w in work.model.named_parameters() if work.optimizer.state[w]["exp_avg"].abs().sum() > 0}
    assert moved == set(before)


def test_bfloat16_is_autocast_over_float32_weights():
    found = run_benchmark(BenchOptions(**QUICK, dtype="bfloat16")).to_json()
    assert found["machine"]["dtype"] == "bfloat16"
    work = workload(dtype="bfloat16")
    assert {weight.dtype for weight in work.model.parameters()} == {torch.float32}
    seen = []
    work.model.blocks[0]["mlp"].inner.up.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    loss = work.loss()
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32


def test_text_that_fills_the_context_fits_and_a_longer_one_does_not():
    assert workload(prompt_tokens=(44,)).token_ids_BT.shape[1] == 48
    with pytest.raises(UsageError, match=r"45 and --gen-tokens 4, the model's context is 48"):
        workload(prompt_tokens=(45,))


def test_pixels_and_text_follow_the_seed():
    first, same, other = (workload(seed=seed) for seed in (0, 0, 1))
    for name in ("pixels_BCHW", "token_ids_BT", "target_BT"):
        assert torch.equal(getattr(first, name), getattr(same, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("layers", [True, False])
def test_steps_are_as_many_as_asked_for(monkeypatch, layers):
    runs = []
    step = TrainWorkload.run
    monkeypatch.setattr(
        TrainWorkload, "run", lambda self, watch: runs.append(torch.is_grad_enabled()) or step(self, watch)
    )
    found = run_benchmark(BenchOptions(**QUICK | {"warmup": 3}, layers=layers)).to_json()
    assert runs == [True] * (6 if layers else 5)  # with layers one more is counted
    assert (found["summary"]["flops"] is None) != layers
    assert bool(found["layers"]) == layers
