import json
from collections import Counter

import pytest
import torch
from PIL import Image

from mmt_cli.benchmark import measure, run
from mmt_cli.benchmark.caption import FIRST_TOKEN, CaptionWorkload
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.results import HOOKS, UNATTRIBUTED
from mmt_cli.benchmark.run import run_benchmark
from mmt_cli.benchmark.subject import opened
from mmt_cli.benchmark.train import TrainWorkload
from mmt_cli.captioning import viewer
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, ModelError, UsageError

QUICK = {"models": ("preset:tiny",), "repetitions": 2, "warmup": 0, "gen_tokens": (4,), "device": "cpu"}
BEFORE_WORDS = ["read", "preprocess", "transfer", "vision", "connector", "prefill"]
PARTS = [*BEFORE_WORDS, "decode", "choose", "detokenise"]
PHASES = [*PARTS, FIRST_TOKEN, "caption"]
PARTS_AS_THEY_COME = [*BEFORE_WORDS, "choose", "decode", "detokenise", UNATTRIBUTED]
BLOCKS = ["text", "blocks.0", "blocks.1", "head", HOOKS, UNATTRIBUTED]


@pytest.fixture(scope="module")
def report():
    return run_benchmark(BenchOptions(**QUICK, batch_sizes=(3, 1))).to_json()


def of(report, phase, batch_size=3):
    return [row for row in report["layers"] if (row["phase"], row["batch_size"]) == (phase, batch_size)]


def test_report_has_the_contracts_keys(report):
    assert list(report)[:5] == ["machine", "settings", "phases", "layers", "summary"]
    case = {"model", "batch_size", "prompt_tokens", "gen_tokens"}
    phase = case | {"name", "median_ms", "p95_ms", "min_ms", "samples_ms"}
    layer = case | {"name", "phase", "calls", "median_ms", "p95_ms", "share", "flops", "bytes"}
    layer |= {"flops_per_s", "matrix_share", "bytes_per_s", "bandwidth_share", "peak_memory_bytes"}
    summary = {"images_per_s", "tokens_per_s", "ttft_ms", "peak_memory_bytes", "mfu", "bandwidth_utilisation"}
    summary |= case | {"flops", "parameters", "cold_start_ms", "steps", "layers_apart"}
    summary |= {"peak_process_bytes", "peak_allocator_bytes", "peak_tensor_bytes"}
    assert {frozenset(row) for row in report["phases"]} == {frozenset(phase)}
    assert {frozenset(row) for row in report["layers"]} == {frozenset(layer)}
    assert set(report["summary"]) == summary
    assert json.loads(json.dumps(report)) == report


def test_every_phase_is_sampled_once_a_caption_those_of_an_image_or_a_step_once_each(report):
    assert [(row["batch_size"], row["name"]) for row in report["phases"]] == [(b, n) for b in (3, 1) for n in PHASES]
    counts = {row["name"]: len(row["samples_ms"]) for row in report["phases"] if row["batch_size"] == 3}
    assert counts == dict.fromkeys(PHASES, 2) | {"read": 6, "preprocess": 6, "decode": 6, "choose": 8}


def test_rows_of_every_phase_add_up_to_it(report):
    for phase in report["phases"]:
        rows = of(report, phase["name"], phase["batch_size"])
        if phase["name"] not in ("caption", "vision", "prefill", "decode"):
            assert rows == []
        else:
            assert rows[-1]["name"] == UNATTRIBUTED
            assert sum(row["median_ms"] for row in rows) == pytest.approx(phase["median_ms"])
            assert sum(row["share"] for row in rows) == pytest.approx(1)
            assert all(row["p95_ms"] >= row["median_ms"] >= 0 for row in rows)


def test_where_steps_are_replayed_layers_are_timed_in_runs_of_their_own(monkeypatch):
    hooked = []
    run_once = CaptionWorkload.run
    monkeypatch.setattr(measure, "is_recorded", lambda model: True)
    monkeypatch.setattr(
        CaptionWorkload,
        "run",
        lambda self, watch: hooked.append(bool(self.model.blocks[0]._forward_hooks)) or run_once(self, watch),
    )
    report = run_benchmark(BenchOptions(**QUICK)).to_json()
    assert hooked == [False, False, True, True, True]  # the last one is counted
    assert report["summary"]["layers_apart"]
    assert [row["name"] for row in of(report, "decode", 1)] == BLOCKS
    assert {phase["name"]: len(phase["samples_ms"]) for phase in report["phases"]}["caption"] == 2


def test_layers_are_those_that_ran(report):
    assert [row["name"] for row in of(report, "vision")] == [
        "vision.embedding",
        "vision.blocks.0",
        "vision.norm",
        HOOKS,
        UNATTRIBUTED,
    ]
    assert [row["name"] for row in of(report, "prefill")] == [row["name"] for row in of(report, "decode")] == BLOCKS


def test_calls_are_those_of_one_run_of_the_phase(report):
    assert {row["name"]: row["calls"] for row in of(report, "caption")[:-1]} == dict.fromkeys(PARTS, 1) | {
        "read": 3,
        "preprocess": 3,
        "decode": 3,
        "choose": 4,
    }
    assert {row["calls"] for row in of(report, "decode") if row["name"] != HOOKS} == {1}
    assert [row["calls"] for row in of(report, "decode") if row["name"] == HOOKS] == [4]


def test_work_grows_with_the_batch_but_the_weights_do_not(report):
    for name in ("blocks.0", "head"):
        (large,) = (row for row in of(report, "decode", 3) if row["name"] == name)
        (small,) = (row for row in of(report, "decode", 1) if row["name"] == name)
        assert large["flops"] == 3 * small["flops"] > 0
        # Of a block the keys and values, too: 17 image tokens or so, and the words before.
        assert large["bytes"] - small["bytes"] == (0 if name == "head" else 2 * 2 * 4 * 32 * 20)


def test_summary_follows_from_the_phases(report):
    phases = {row["name"]: row for row in report["phases"] if row["batch_size"] == 3}
    summary = report["summary"]
    assert summary == report["summaries"][0]
    assert [other["batch_size"] for other in report["summaries"]] == [3, 1]
    assert summary["images_per_s"] == pytest.approx(3000 / phases["caption"]["median_ms"])
    assert summary["tokens_per_s"] == pytest.approx(3000 / phases["decode"]["median_ms"])
    assert summary["ttft_ms"] == phases[FIRST_TOKEN]["median_ms"]
    assert summary["peak_memory_bytes"] == summary["peak_process_bytes"] > 10**7
    assert summary["peak_allocator_bytes"] is None
    assert 0 < summary["peak_tensor_bytes"] < 10**7
    assert summary["mfu"] == pytest.approx(summary["flops"] / phases["caption"]["median_ms"] * 1000 / 1e12)
    (decode,) = (row for row in of(report, "caption") if row["name"] == "decode")
    assert summary["bandwidth_utilisation"] == pytest.approx(decode["bytes"] / decode["median_ms"] * 1000 / 1e11)


def test_first_token_is_all_that_comes_before_it(report):
    phases = {row["name"]: row["samples_ms"] for row in report["phases"] if row["batch_size"] == 1}
    for run_number, first in enumerate(phases[FIRST_TOKEN]):
        before = sum(phases[name][run_number] for name in BEFORE_WORDS) + phases["choose"][4 * run_number]
        assert before <= first <= phases["caption"][run_number] - sum(phases["decode"][3 * run_number :][:3]) + 0.1


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
        "models": ["preset:tiny"],
        "set": {},
        "phase": "caption",
        "image": "synthetic 640 x 480",
        "batch_sizes": [3, 1],
        "prompt_tokens": [2],
        "gen_tokens": [4],
        "repetitions": 2,
        "warmup": 0,
        "cold_starts": 0,
        "against": None,
        "quantize": None,
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
    assert [part.name for part in found.results[0].parts] == PARTS_AS_THEY_COME


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
    found = run_benchmark(BenchOptions(**QUICK | {"models": (str(tmp_path / "model"),), "dtype": "bfloat16"})).to_json()
    assert found["machine"]["dtype"] == "bfloat16"
    flops = {p: sum(row["flops"] for row in of(found, p, 1)) for p in ("prefill", "decode")}
    assert flops["decode"] > flops["prefill"]  # the second step reads two tokens more
    assert [row["name"] for row in of(found, "decode", 1)] == [
        "text",
        *(f"blocks.{i}" for i in range(3)),
        "head",
        HOOKS,
        UNATTRIBUTED,
    ]


def test_one_new_token_needs_no_step():
    found = run_benchmark(BenchOptions(**QUICK | {"gen_tokens": (1,)})).to_json()
    assert [row["name"] for row in found["phases"]] == [name for name in PHASES if name != "decode"]
    assert found["summary"]["tokens_per_s"] is None


def test_image_file_is_what_is_read(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("RGB", (50, 40), "red").save(path)
    read = []
    for module in (run, viewer):
        monkeypatch.setattr(module, "read_image", lambda source, **_: read.append(source) or Image.new("RGB", (9, 9)))
    found = run_benchmark(BenchOptions(**QUICK, image=path)).to_json()
    assert read == [path] * 4  # before the model is loaded, twice timed, once counted
    assert found["settings"]["image"] == str(path)


def test_unreadable_image_is_named_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        run_benchmark(BenchOptions(models=("nowhere",), image=tmp_path / "gone.jpg"))


def test_dtype_and_seed_reach_the_model():
    def loaded(seed):
        with opened("preset:tiny", BenchOptions(**QUICK, seed=seed)) as subject:
            return subject.captioner.model

    first, same, other = (loaded(seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.projection.weight, same.head.projection.weight)
    assert not torch.equal(first.head.projection.weight, other.head.projection.weight)
    assert run_benchmark(BenchOptions(**QUICK, dtype="bfloat16")).machine["dtype"] == "bfloat16"


def test_weights_in_8_bits_are_counted_and_told():
    report = run_benchmark(BenchOptions(**QUICK, quantize="int8")).to_json()
    assert report["machine"]["dtype"] == "int8 and float32"
    assert report["settings"]["quantize"] == "int8"
    assert report["summary"]["parameters"] == 43_584
    head = next(row for row in report["layers"] if row["name"] == "head" and row["phase"] == "prefill")
    assert head["flops"] > 0 and head["bytes"] > 0


def test_settings_change_the_preset_and_stand_in_the_report():
    wanted = {"text.num_layers": 1, "text.head": "own"}
    found = run_benchmark(BenchOptions(**QUICK, settings=wanted)).to_json()
    assert [row["name"] for row in of(found, "prefill", 1)] == ["text", "blocks.0", "head", HOOKS, UNATTRIBUTED]
    assert found["settings"]["set"] == wanted


@pytest.mark.parametrize("reference", ["mini", "nowhere"])
def test_settings_without_a_preset_are_refused_and_both_are_named(reference):
    with pytest.raises(UsageError, match=rf"--set text\.num_layers, model '{reference}'"):
        run_benchmark(BenchOptions(models=(reference,), settings={"text.num_layers": 1}))


def test_text_longer_than_the_context_is_refused():
    fitting = BenchOptions(**QUICK | {"prompt_tokens": (45,), "repetitions": 1})
    assert run_benchmark(fitting).results
    with pytest.raises(UsageError, match=r"46 and --gen-tokens 4, the model's context is 48"):
        run_benchmark(BenchOptions(**QUICK | {"prompt_tokens": (46,)}))


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
        run_benchmark(BenchOptions(models=(reference,)))


def test_several_models_and_lengths_are_cases_of_one_report():
    options = BenchOptions(**QUICK | {"models": ("preset:tiny", "mini"), "gen_tokens": (2, 18), "repetitions": 1})
    found = run_benchmark(options).to_json()
    cases = [(row["model"], row["gen_tokens"]) for row in found["summaries"]]
    assert cases == [("preset:tiny", 2), ("preset:tiny", 18), ("mini", 2), ("mini", 18)]
    assert [len(row["steps"]) for row in found["summaries"]] == [0, 2, 0, 2]
    assert {row["model"] for row in found["layers"]} == {"preset:tiny", "mini"}
    assert [row["kind"] for row in run_benchmark(BenchOptions(**QUICK)).lines()[:3]] == ["machine", "settings", "phase"]


@pytest.mark.parametrize("seconds", [0.25])
def test_cold_start_is_a_phase_of_the_first_case_and_a_figure_of_all(monkeypatch, seconds):
    asked = []

    def fake(reference, image, options, gen_tokens):
        asked.append((reference, bytes(image[:3]), gen_tokens))
        return [1000 * seconds] * options.cold_starts

    monkeypatch.setattr(run, "cold_starts", fake)
    found = run_benchmark(BenchOptions(**QUICK, batch_sizes=(1, 2), cold_starts=3)).to_json()
    [(reference, start, gen_tokens)] = asked
    assert (reference.startswith("preset:"), start, gen_tokens) == (False, b"\xff\xd8\xff", 4)  # a folder, a JPEG
    cold = [row for row in found["phases"] if row["name"] == "cold start"]
    assert [(row["batch_size"], row["samples_ms"]) for row in cold] == [(1, [250.0] * 3)]
    assert [row["cold_start_ms"] for row in found["summaries"]] == [250.0, 250.0]
    assert found["phases"][0] == cold[0]


def test_folder_without_a_tokenizer_gets_words_but_no_cold_start(tools, tmp_path, monkeypatch):
    model = tools.build_model(tools.small_config("tiny"))
    parts = {"tokenizer": None, "preprocessing": default_preprocessing(model.config), "card": ""}
    save_checkpoint(tmp_path / "model", model, generation=GenerationOptions(), **parts)
    notes = []
    options = BenchOptions(**QUICK | {"models": (str(tmp_path / "model"),)}, cold_starts=1)
    found = run_benchmark(options, note=notes.append).to_json()
    assert "no tokenizer: no cold start" in notes[0]
    assert "detokenise" in [row["name"] for row in found["phases"]]
    assert found["summary"]["cold_start_ms"] is None
