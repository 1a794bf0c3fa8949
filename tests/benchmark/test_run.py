import json
from collections import Counter

import pytest
import torch
from PIL import Image

from mmt_cli.benchmark import caption, run
from mmt_cli.benchmark.caption import CaptionWorkload
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.results import UNATTRIBUTED
from mmt_cli.benchmark.run import load, run_benchmark
from mmt_cli.benchmark.train import TrainWorkload
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, ModelError, UsageError

QUICK = {"model": "preset:tiny", "repetitions": 2, "warmup": 0, "gen_tokens": 4, "device": "cpu"}
PHASES = ["preprocess", "vision", "connector", "prefill", "decode", "caption"]
BLOCKS = ["text", "blocks.0", "blocks.1", "head", UNATTRIBUTED]


@pytest.fixture(scope="module")
def report():
    return run_benchmark(BenchOptions(**QUICK, batch_sizes=(3, 1))).to_json()


def of(report, phase, batch_size=3):
    return [row for row in report["layers"] if (row["phase"], row["batch_size"]) == (phase, batch_size)]


def test_report_has_the_contracts_keys(report):
    assert list(report)[:5] == ["machine", "settings", "phases", "layers", "summary"]
    phase = {"name", "batch_size", "median_ms", "p95_ms", "min_ms", "samples_ms"}
    layer = {"name", "phase", "batch_size", "calls", "median_ms", "p95_ms", "share", "flops", "bytes"}
    summary = {"images_per_s", "tokens_per_s", "ttft_ms", "peak_memory_bytes", "mfu", "bandwidth_utilisation"}
    summary |= {"batch_size", "flops", "parameters"}
    assert {frozenset(row) for row in report["phases"]} == {frozenset(phase)}
    assert {frozenset(row) for row in report["layers"]} == {frozenset(layer)}
    assert set(report["summary"]) == summary
    assert json.loads(json.dumps(report)) == report


def test_every_phase_is_sampled_once_a_caption_and_decode_once_a_step(report):
    assert [(row["batch_size"], row["name"]) for row in report["phases"]] == [(b, n) for b in (3, 1) for n in PHASES]
    assert {row["name"]: len(row["samples_ms"]) for row in report["phases"]} == dict.fromkeys(PHASES, 2) | {"decode": 6}


def test_rows_of_every_phase_add_up_to_it(report):
    for phase in report["phases"]:
        rows = of(report, phase["name"], phase["batch_size"])
        if phase["name"] == "connector":  # this model has none
            assert rows == []
        else:
            assert rows[-1]["name"] == UNATTRIBUTED
            assert sum(row["median_ms"] for row in rows) == pytest.approx(phase["median_ms"])
            assert sum(row["share"] for row in rows) == pytest.approx(1)
            assert all(row["p95_ms"] >= row["median_ms"] >= 0 for row in rows)


def test_layers_are_those_that_ran(report):
    assert [row["name"] for row in of(report, "vision")] == [
        "vision.embedding",
        "vision.blocks.0",
        "vision.norm",
        UNATTRIBUTED,
    ]
    assert [row["name"] for row in of(report, "prefill")] == [row["name"] for row in of(report, "decode")] == BLOCKS


def test_calls_are_those_of_one_run_of_the_phase(report):
    assert [(row["name"], row["calls"]) for row in of(report, "preprocess")][:2] == [
        ("read and decode", 3),
        ("resize and scale", 3),
    ]
    assert [(row["name"], row["calls"]) for row in of(report, "caption")][:-1] == [
        *((name, 1) for name in PHASES[:4]),
        ("decode", 3),
    ]
    assert {row["calls"] for row in of(report, "decode")} == {1}


def test_work_grows_with_the_batch_but_the_weights_do_not(report):
    for name in ("blocks.0", "head"):
        (large,) = (row for row in of(report, "decode", 3) if row["name"] == name)
        (small,) = (row for row in of(report, "decode", 1) if row["name"] == name)
        assert large["flops"] == 3 * small["flops"] > 0
        assert large["bytes"] == small["bytes"] > 0


def test_summary_follows_from_the_phases(report):
    phases = {row["name"]: row for row in report["phases"] if row["batch_size"] == 3}
    summary = report["summary"]
    assert summary == report["summaries"][0]
    assert [other["batch_size"] for other in report["summaries"]] == [3, 1]
    assert summary["images_per_s"] == pytest.approx(3000 / phases["caption"]["median_ms"])
    assert summary["tokens_per_s"] == pytest.approx(3000 / phases["decode"]["median_ms"])
    first = [sum(phases[name]["samples_ms"][i] for name in PHASES[:4]) for i in (0, 1)]
    assert summary["ttft_ms"] == pytest.approx(sum(first) / 2)
    assert summary["peak_memory_bytes"] > 10**7
    assert summary["mfu"] is None
    assert summary["bandwidth_utilisation"] is None


def test_flops_of_the_summary_are_those_of_all_phases_and_layers(report):
    for summary in report["summaries"]:
        parts = of(report, "caption", summary["batch_size"])
        assert summary["flops"] == sum(row["flops"] for row in parts) > 0
        for part in parts:
            layers = of(report, part["name"], summary["batch_size"])
            # Each later step of decoding attends to one token more: the layers are of the middle one.
            assert sum(row["flops"] for row in layers) * part["calls"] == part["flops"]
    assert report["summaries"][0]["flops"] == 3 * report["summaries"][1]["flops"]


def test_parameters_are_counted_once_though_the_head_is_tied(report):
    assert report["summary"]["parameters"] == 43_584  # as `mmt inspect preset:tiny` has it


def test_machine_and_settings_say_what_was_run(report):
    assert (
        report["machine"]
        | {
            "device": "cpu",
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gpu": None,
        }
        == report["machine"]
    )
    assert report["machine"]["processor"]
    assert report["machine"]["cores"] >= 1
    assert report["settings"] == {
        "model": "preset:tiny",
        "set": {},
        "phase": "caption",
        "image": "synthetic 640 x 480",
        "batch_sizes": [3, 1],
        "prompt_tokens": 2,
        "gen_tokens": 4,
        "repetitions": 2,
        "warmup": 0,
        "layers": True,
        "seed": 0,
    }


@pytest.fixture
def captions(monkeypatch):
    """Count the captions written, with and without hooks."""
    counts = Counter()
    run_once = CaptionWorkload.run

    def counted(self, watch):
        hooked = any(part._forward_hooks for part in self.model.modules())
        counts["hooked" if hooked else "bare"] += 1
        counts["inference"] += torch.is_inference_mode_enabled()
        counts["model"] = self.model
        run_once(self, watch)

    monkeypatch.setattr(CaptionWorkload, "run", counted)
    return counts


def test_warm_up_is_run_but_not_sampled(captions):
    found = run_benchmark(BenchOptions(**QUICK | {"warmup": 3, "repetitions": 1})).to_json()
    assert (captions["bare"], captions["hooked"]) == (3, 2)  # one is timed, one counted
    assert captions["inference"] == 4  # all but the counted one
    assert len(found["phases"][-1]["samples_ms"]) == 1
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in captions["model"].modules())


def test_without_layers_nothing_is_hooked_or_counted(captions):
    found = run_benchmark(BenchOptions(**QUICK, layers=False))
    assert (captions["bare"], captions["hooked"]) == (2, 0)
    assert found.to_json()["layers"] == []
    assert found.to_json()["summary"]["flops"] is None
    assert [part.name for part in found.batches[0].parts] == [*PHASES[:-1], UNATTRIBUTED]


def test_model_without_a_cache_is_read_again_at_each_step(tools, tmp_path):
    model = tools.build_model(tools.small_config("seed"))
    save_checkpoint(
        tmp_path / "model",
        model,
        tokenizer=None,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="",
    )
    found = run_benchmark(BenchOptions(**QUICK | {"model": str(tmp_path / "model"), "dtype": "bfloat16"})).to_json()
    assert found["machine"]["dtype"] == "bfloat16"
    flops = {p: sum(row["flops"] for row in of(found, p, 1)) for p in ("prefill", "decode")}
    assert flops["decode"] > flops["prefill"]  # the second step reads two tokens more
    assert [row["name"] for row in of(found, "decode", 1)] == [
        "text",
        *(f"blocks.{i}" for i in range(3)),
        "head",
        UNATTRIBUTED,
    ]


def test_one_new_token_needs_no_step():
    found = run_benchmark(BenchOptions(**QUICK | {"gen_tokens": 1})).to_json()
    assert [row["name"] for row in found["phases"]] == [name for name in PHASES if name != "decode"]
    assert found["summary"]["tokens_per_s"] is None


def test_image_file_is_what_is_read(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("RGB", (50, 40), "red").save(path)
    read = []
    for module in (run, caption):
        monkeypatch.setattr(module, "read_image", lambda source, **_: read.append(source) or Image.new("RGB", (9, 9)))
    found = run_benchmark(BenchOptions(**QUICK, image=path)).to_json()
    assert read == [path] * 4  # before the model is loaded, twice timed, once counted
    assert found["settings"]["image"] == str(path)


def test_unreadable_image_is_named_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        run_benchmark(BenchOptions(model="nowhere", image=tmp_path / "gone.jpg"))


def test_dtype_and_seed_reach_the_model():
    first, same, other = (load(BenchOptions(**QUICK, seed=seed)).model for seed in (0, 0, 1))
    assert torch.equal(first.head.projection.weight, same.head.projection.weight)
    assert not torch.equal(first.head.projection.weight, other.head.projection.weight)
    assert run_benchmark(BenchOptions(**QUICK, dtype="bfloat16")).machine["dtype"] == "bfloat16"


def test_settings_change_the_preset_and_stand_in_the_report():
    wanted = {"text.num_layers": 1, "text.head": "own"}
    found = run_benchmark(BenchOptions(**QUICK, settings=wanted)).to_json()
    assert [row["name"] for row in of(found, "prefill", 1)] == ["text", "blocks.0", "head", UNATTRIBUTED]
    assert found["settings"]["set"] == wanted


@pytest.mark.parametrize("reference", ["mini", "nowhere"])
def test_settings_without_a_preset_are_refused_and_both_are_named(reference):
    with pytest.raises(UsageError, match=rf"--set text\.num_layers, model '{reference}'"):
        load(BenchOptions(model=reference, settings={"text.num_layers": 1}))


def test_text_longer_than_the_context_is_refused():
    fitting = BenchOptions(**QUICK | {"prompt_tokens": 45, "repetitions": 1})
    assert run_benchmark(fitting).batches
    with pytest.raises(UsageError, match=r"46 and --gen-tokens 4, the model's context is 48"):
        run_benchmark(BenchOptions(**QUICK | {"prompt_tokens": 46}))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("phase", ["caption", "train"])
def test_batch_too_large_for_the_memory_is_named(monkeypatch, phase, error):
    def fail(self, watch):
        raise error

    workload = {"caption": CaptionWorkload, "train": TrainWorkload}[phase]
    monkeypatch.setattr(workload, "run", fail)
    with pytest.raises(UsageError, match="batch size 7, cpu"):
        run_benchmark(BenchOptions(**QUICK, phase=phase, batch_sizes=(7,)))


def test_batch_too_large_to_be_built_is_named(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(TrainWorkload, "__init__", fail)
    with pytest.raises(UsageError, match="batch size 7, cpu"):
        run_benchmark(BenchOptions(**QUICK, phase="train", batch_sizes=(7,)))


def test_other_errors_are_bugs(monkeypatch):
    def fail(self, watch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(CaptionWorkload, "run", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_benchmark(BenchOptions(**QUICK))


@pytest.mark.parametrize(("reference", "error"), [("preset:nope", UsageError), ("nowhere", ModelError)])
def test_unknown_model_is_named(reference, error):
    with pytest.raises(error, match=reference.removeprefix("preset:")):
        run_benchmark(BenchOptions(model=reference))
