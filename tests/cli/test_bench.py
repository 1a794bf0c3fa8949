import csv
import importlib
import io
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.benchmark import cold, run
from mmt_cli.benchmark.ceilings import Ceilings
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.cli import bench_options
from mmt_cli.cli.app import build
from mmt_cli.errors import UsageError

OPTIONS = (
    "--model --set --revision --offline --phase --image --batch-size --prompt-tokens --gen-tokens --cold-starts "
    "--repetitions --warmup --layers --against --baseline --fail-above --format --save-svg --save-chart --device "
    "--dtype --quantize --threads --seed --quiet --debug"
)
QUICK = ("-r", "1", "--warmup", "0", "--gen-tokens", "3", "--device", "cpu", "--cold-starts", "0")
CEILINGS = Ceilings(flops_per_s=1e12, matrix_side=2048, bytes_per_s=1e11, buffer_bytes=1 << 30)


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch):
    """Measuring those of the real machine takes seconds."""
    monkeypatch.setattr(run, "measure_ceilings", lambda device, dtype, **_: CEILINGS)


def test_the_options_are_these_and_no_others():
    command = build().commands["bench"]
    names = [next(n for n in p.opts if n.startswith("--")) for p in command.params if p.param_type_name == "option"]
    assert names == OPTIONS.split()


@pytest.mark.parametrize(("command", "last"), [("bench", []), ("inspect", []), ("caption", ["one.png"])])
def test_only_hub_ids_have_a_revision(mmt, command, last):
    done = mmt(command, *(["-m"] if command == "caption" else []), "mini", "--revision", "v1", *last)
    assert done.code == 2
    assert "only hub ids have revisions (--revision v1, model 'mini')" in done.err


@pytest.mark.parametrize(("command", "last"), [("bench", []), ("inspect", []), ("caption", ["one.png"])])
def test_offline_takes_hub_ids_from_the_cache_alone(mmt, monkeypatch, tmp_path, command, last):
    """One that is not there is a missing model, told without asking anybody."""
    monkeypatch.chdir(tmp_path)
    model = [*(["-m"] if command == "caption" else []), "no-such-organisation/no-such-model"]
    done = mmt(command, *model, "--offline", *last)
    assert done.code == 5
    assert "no complete copy in the cache (no-such-organisation/no-such-model" in done.err


def test_tables_show_phases_and_layers(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "-b", "2,1")
    assert done.code == 0
    words = [line.split() for line in done.out.splitlines() if line.strip()]
    figures = [line for line in done.out.splitlines() if line.startswith("preset:tiny, 2 + 3 tokens, batch ")]
    assert [line.split()[6] for line in figures] == ["2:", "1:"]
    for name in ("read", "preprocess", "transfer", "vision", "connector", "prefill", "choose", "decode", "detokenise"):
        assert sum(row[0] == name for row in words) == 2, name  # for two batch sizes
    assert sum(row[0] == "caption" and "100.0%" in row for row in words) == 2
    assert sum(row[0] == "blocks.1" for row in words) == 4
    assert sum(row[0] == "embedding" for row in words) == 2
    assert sum(row[0] == "each" for row in words) == 2  # step of decoding
    assert "rate 1.00 TFLOP/s (float32 matrices), band 100 GB/s" in done.out
    assert sum(row[:2] == ["preset:tiny", "2"] for row in words) == 1  # among the figures of all


def test_tables_of_training_show_its_phases_and_what_was_changed(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "--phase", "train", "--set", "text.num_layers=1")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("train preset:tiny, 35,040 parameters, on cpu (")
    assert "set text.num_layers=1" in lines
    rows = [line.split() for line in lines if line.strip()]
    assert [row[0] for row in rows if row[0] in ("forward", "backward", "optimizer")] == [
        *("forward", "backward", "optimizer"),
    ]
    assert [row[0] for row in rows if "100.0%" in row] == ["train"]
    assert not [row for row in rows if row[0] == "blocks.1"]
    assert "first token" not in done.out


def test_phases_show_the_flops_that_were_counted_or_none(mmt):
    lines = mmt("bench", "preset:tiny", *QUICK).out.splitlines()
    (heads,) = (line.split() for line in lines if line.startswith("part "))
    (total,) = (line.split() for line in lines if line.startswith("caption ") and "100.0%" in line)
    assert heads[6] == "FLOPs"  # p95 ms are two words
    assert (float(total[5]) > 1, total[6]) == (True, "M")
    assert "FLOPs" not in mmt("bench", "preset:tiny", *QUICK, "--no-layers").out


@pytest.mark.parametrize("columns", ["80", "100", "120"])
@pytest.mark.parametrize("phase", ["caption", "train"])
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_tables_fit_and_cut_nothing(mmt, monkeypatch, columns, phase, name):
    monkeypatch.setenv("COLUMNS", columns)
    lines = mmt("bench", f"preset:{name}", "--phase", phase, *QUICK).out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert not [line for line in lines if "…" in line]
    start = next(i for i, line in enumerate(lines) if line.startswith("part "))
    rows = [line.split() for line in lines[start + 2 :] if line.strip()]
    assert all(len(row) >= 5 for row in rows)  # none is folded
    assert "FLOPs" in lines[start] and "rate" in lines[start]
    if phase == "caption":
        assert ("memory" in lines[start], "FLOP/s" in lines[start]) == (int(columns) >= 100,) * 2


def test_without_layers_the_phases_are_left(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "--no-layers")
    assert "caption" in done.out
    assert "blocks.0" not in done.out
    assert "FLOPs" not in done.out


def test_lines_of_json_each_say_what_they_are(mmt):
    lines = [json.loads(line) for line in mmt("bench", "preset:tiny", *QUICK, "-f", "jsonl", "-q").out.splitlines()]
    assert list(dict.fromkeys(line["kind"] for line in lines)) == ["machine", "settings", "phase", "layer", "summary"]


def test_csv_has_a_row_for_each_part_and_layer(mmt):
    whole = json.loads(mmt("bench", "preset:tiny", *QUICK, "-f", "json", "-q").out)
    rows = list(csv.DictReader(io.StringIO(mmt("bench", "preset:tiny", *QUICK, "-f", "csv", "-q").out)))
    assert [(row["phase"], row["name"]) for row in rows] == [(row["phase"], row["name"]) for row in whole["layers"]]
    assert list(rows[0]) == list(whole["layers"][0])
    without = list(csv.DictReader(io.StringIO(mmt("bench", "preset:tiny", *QUICK, "-f", "csv", "--no-layers").out)))
    assert {row["phase"] for row in without} == {"caption"}
    assert {row["flops"] for row in without} == {""}


def test_markdown_has_all_columns_however_narrow_the_terminal(mmt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = mmt("bench", "preset:tiny", *QUICK, "-f", "md").out
    heads = [line for line in out.splitlines() if line.startswith("| part")]
    assert heads == ["| part | calls | ms | p95 ms | share | FLOPs | FLOP/s | rate | bytes | band | memory |"]


def test_tables_are_drawn_into_a_file_that_fetches_nothing(mmt, tmp_path):
    done = mmt("bench", "preset:tiny", *QUICK, "-f", "json", "--save-svg", str(tmp_path / "tables.svg"))
    assert json.loads(done.out)["layers"]
    svg = (tmp_path / "tables.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "detokenise" in svg
    assert "url(http" not in svg and "@font-face" not in svg
    failed = mmt("bench", "preset:tiny", *QUICK, "-q", "--save-svg", str(tmp_path / "no" / "tables.svg"))
    assert (failed.code, len(failed.lines)) == (2, 1)
    assert "the drawing cannot be written" in failed.err


def test_phases_are_drawn_as_bars(mmt, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bars.png"
    assert mmt("bench", "preset:tiny", *QUICK, "-b", "1,2", "--save-chart", str(path)).code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    failed = mmt("bench", "preset:tiny", *QUICK, "-q", "--save-chart", str(tmp_path / "no" / "bars.png"))
    assert (failed.code, "the chart cannot be written" in failed.err) == (2, True)


def test_chart_without_matplotlib_is_refused_before_anything_is_measured(mmt, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    done = mmt("bench", "nowhere", "--save-chart", "bars.png")
    assert (done.code, len(done.lines)) == (2, 1)
    assert "pip install 'mmt-cli[plots]'" in done.err


@pytest.mark.parametrize(("factor", "code"), [(1000, 0), (0.001, 3)])
def test_a_run_that_is_slower_than_its_baseline_fails_after_it_was_shown(mmt, tmp_path, factor, code):
    """The old report has far longer times, or far shorter ones."""
    old = tmp_path / "old.json"
    whole = json.loads(mmt("bench", "preset:tiny", *QUICK, "-f", "json", "--no-layers").out)
    phases = [row | {"samples_ms": [factor * value for value in row["samples_ms"]]} for row in whole["phases"]]
    old.write_text(json.dumps(whole | {"phases": phases}), encoding="utf-8")
    done = mmt("bench", "preset:tiny", *QUICK, "--no-layers", "-q", "--baseline", str(old), "--fail-above", "5%")
    assert "as fast" in done.out
    assert done.code == code, done.err
    assert done.err.startswith("mmt: error: slower (") if code else not done.err


def test_comparison_shows_ratio_and_equal_tokens(mmt):
    pytest.importorskip("transformers")
    small = {"text.num_layers": 1, "vision.num_layers": 1, "vision.image_size": 32, "text.vocab_size": 97}
    settings = [word for pair in small.items() for word in ("--set", "=".join(map(str, pair)))]
    done = mmt("bench", "preset:vit-gpt2", *settings, *QUICK, "--no-layers", "--against", "transformers")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if line.startswith("preset:") and " x " in line]
    assert [row[1] for row in rows] == ["caption", "first"]
    assert [row[-3:] for row in rows] == [["3", "of", "3"], ["1", "of", "1"]]


@pytest.mark.parametrize(
    ("text", "found"),
    [("1", (1,)), ("1,8", (1, 8)), ("1-4", (1, 2, 3, 4)), ("8,1-3,2", (8, 1, 2, 3)), ("5-5", (5,)), ("1-64", None)],
)
def test_lists_are_numbers_and_ranges(text, found):
    assert bench_options.sizes("--batch-size", text) == (found or tuple(range(1, 65)))


@given(st.lists(st.tuples(st.integers(1, 999_999), st.integers(0, 3)), min_size=1, max_size=8))
def test_lists_hold_what_was_written_once_each(items):
    text = ",".join(f"{first}-{first + more}" for first, more in items)
    wanted = dict.fromkeys(number for first, more in items for number in range(first, first + more + 1))
    assert bench_options.sizes("--gen-tokens", text) == tuple(wanted)


@pytest.mark.slow
def test_cold_start_is_that_of_a_process_of_its_own(mmt):
    done = mmt("bench", "preset:tiny", *QUICK[:-2], "--cold-starts", "2", "-f", "json", "-q")
    assert done.code == 0, done.err
    cold = json.loads(done.out)["phases"][0]
    assert (cold["name"], len(cold["samples_ms"])) == ("cold start", 2)
    assert cold["min_ms"] > 200  # Python and torch alone take longer


def test_process_that_fails_is_named_with_what_it_said(monkeypatch):
    monkeypatch.setattr(cold, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('out of luck')"])
    with pytest.raises(UsageError, match=r"exit 1, 'out of luck'\); --cold-starts 0 goes without"):
        cold.cold_starts("mini", b"", BenchOptions(cold_starts=1), 3)


def test_json_is_one_line(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "-f", "json", "-q")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert json.loads(done.out)["settings"]["model"] == "preset:tiny"


def test_bench_imports_no_compiler():
    code = (
        "import sys; from mmt_cli.cli.app import main; main(sys.argv[1:]); "
        "print(sorted({'torch._dynamo', 'sympy', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "bench", "preset:tiny", *QUICK, "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_progress_goes_to_stderr_unless_quiet(mmt):
    done = mmt("bench", "preset:tiny", *QUICK)
    assert len(done.lines) == 1
    assert "preset:tiny" in done.err
    assert mmt("bench", "preset:tiny", *QUICK, "--quiet").err == ""


class StoppedError(UsageError):
    pass


@pytest.fixture
def options_of(mmt, monkeypatch):
    """Return a function that gives the options that a command line makes, without running it."""
    seen = []

    def stop(options, *, note):
        seen.append(options)
        raise StoppedError("enough")

    monkeypatch.setattr(run, "run_benchmark", stop)

    def options(*arguments):
        assert mmt("bench", *arguments).code == 2
        return seen[-1]

    return options


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"models": ("mini",), "image": None, "batch_sizes": (1,), "prompt_tokens": (2,), "gen_tokens": (20,)}),
        ((), {"repetitions": 5, "warmup": 2, "layers": True, "device": "auto", "dtype": "auto", "seed": 0}),
        (("preset:seed",), {"models": ("preset:seed",)}),
        (("-m", "some/folder"), {"models": ("some/folder",)}),
        (("--model", "mini"), {"models": ("mini",)}),
        (("preset:seed", "-m", "mini", "-m", "x", "-m", "mini"), {"models": ("preset:seed", "mini", "x")}),
        ((), {"cold_starts": 1, "against": None}),
        (("--cold-starts", "3"), {"cold_starts": 3}),
        (("--against", "transformers"), {"against": "transformers"}),
        ((), {"phase": "caption", "settings": {}}),
        (("--phase", "train"), {"phase": "train"}),
        (("--phase", "caption"), {"phase": "caption"}),
        (("preset:tiny", "--set", "a.b=2", "--set", "c=text"), {"settings": {"a.b": 2, "c": "text"}}),
        (("-b", "1,8,64"), {"batch_sizes": (1, 8, 64)}),
        (("--batch-size", "2"), {"batch_sizes": (2,)}),
        (("--prompt-tokens", "9"), {"prompt_tokens": (9,)}),
        (("--gen-tokens", "16,64-65"), {"gen_tokens": (16, 64, 65)}),
        (("-r", "3"), {"repetitions": 3}),
        (("--repetitions", "4"), {"repetitions": 4}),
        (("--warmup", "0"), {"warmup": 0}),
        (("--no-layers",), {"layers": False}),
        (("--device", "cuda:1"), {"device": "cuda:1"}),
        (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
        ((), {"quantize": None}),
        (("--quantize", "int8"), {"quantize": "int8"}),
        (("--seed", "5"), {"seed": 5}),
    ],
)
def test_every_option_reaches_the_benchmark(options_of, arguments, expected):
    found = options_of(*arguments)
    assert {name: getattr(found, name) for name in expected} == expected


def test_image_is_taken_as_a_path(options_of):
    assert str(options_of("--image", "a b.jpg").image) == "a b.jpg"


def test_threads_are_set(mmt):
    before = torch.get_num_threads()
    try:
        done = mmt("bench", "preset:tiny", *QUICK, "--threads", str(before + 1), "-f", "json")
    finally:
        torch.set_num_threads(before)
    assert json.loads(done.out)["machine"]["threads"] == before + 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("preset:tiny", "-b", "4-1"), 2),
        (("preset:tiny", "-b", "1-65"), 2),
        (("preset:tiny", "--fail-above", "5%"), 2),
        (("preset:tiny", "--baseline", "gone.json", "--fail-above", "x"), 2),
        (("preset:tiny", "--baseline", "gone.json"), 2),
        (("preset:tiny", "--against", "vllm"), 2),
        (("preset:tiny", "--phase", "train", "--against", "transformers"), 2),
        (("preset:tiny", "--save-chart", "bars.bmp"), 2),
        (("nowhere",), 5),
        (("mini", "--set", "text.num_layers=1"), 2),
        (("preset:tiny", "--set", "text.num_layers"), 2),
        (("preset:tiny", "--set", "text.layers=1"), 2),
        (("preset:tiny", "--phase", "decode"), 2),
        (("preset:tiny", "--phase", "train", "--image", "x.jpg"), 2),
        (("preset:tiny", "--phase", "train", "--dtype", "float16"), 2),
        (("preset:tiny", "--phase", "train", "--quantize", "int8"), 2),
        (("preset:tiny", "--quantize", "int4"), 2),
        (("preset:nope",), 2),
        (("preset:tiny", "-b", "0"), 2),
        (("preset:tiny", "-b", "1,,2"), 2),
        (("preset:tiny", "-r", "0"), 2),
        (("preset:tiny", "--gen-tokens", "100"), 2),
        (("preset:tiny", "--image", "gone.jpg"), 3),
    ],
)
def test_error_is_one_line(mmt, arguments, code):
    done = mmt("bench", *arguments)
    assert (done.code, done.out, len(done.lines)) == (code, "", 1)
    assert done.err.startswith("mmt: error: ")
