import json
import subprocess
import sys

import pytest
import torch

from mmt_cli.benchmark import run
from mmt_cli.cli.app import build
from mmt_cli.errors import UsageError

OPTIONS = (
    "--model --set --revision --offline --phase --image --batch-size --prompt-tokens --gen-tokens --repetitions "
    "--warmup --layers --format --device --dtype --threads --seed --quiet --debug"
)
QUICK = ("-r", "1", "--warmup", "0", "--gen-tokens", "3", "--device", "cpu")


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
    assert [row[1] for row in words if row[0] == "batch"] == ["2:", "1:"]
    for name in ("preprocess", "vision", "prefill", "decode"):
        assert sum(row[0] == name for row in words) == 4  # in two tables, for two batch sizes
    assert sum(row[0] == "caption" and "100.0%" in row for row in words) == 2
    assert sum(row[0] == "blocks.1" for row in words) == 4
    assert sum(row[0] == "embedding" for row in words) == 2


def test_tables_of_training_show_its_phases_and_what_was_changed(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "--phase", "train", "--set", "text.num_layers=1")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("train preset:tiny, 35,040 parameters, on cpu (")
    assert "set text.num_layers=1" in lines
    rows = [line.split() for line in lines if line.strip()]
    assert [row[0] for row in rows if row[0] in ("forward", "backward", "optimizer")] == [
        *("forward", "backward", "optimizer"),
        "forward",  # with its layers
    ]
    assert [row[0] for row in rows if "100.0%" in row] == ["train", "forward"]
    assert not [row for row in rows if row[0] == "blocks.1"]
    assert "first token" not in done.out


def test_phases_show_the_flops_that_were_counted_or_none(mmt):
    lines = mmt("bench", "preset:tiny", *QUICK).out.splitlines()
    (heads,) = (line.split() for line in lines if line.startswith("phase "))
    (total,) = (line.split() for line in lines if line.startswith("caption ") and "%" in line)
    assert heads[-1] == "FLOPs"
    assert (float(total[-2]) > 1, total[-1]) == (True, "M")
    assert "FLOPs" not in mmt("bench", "preset:tiny", *QUICK, "--no-layers").out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("phase", ["caption", "train"])
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_tables_fit_and_cut_nothing(mmt, monkeypatch, columns, phase, name):
    monkeypatch.setenv("COLUMNS", columns)
    lines = mmt("bench", f"preset:{name}", "--phase", phase, *QUICK).out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert not [line for line in lines if "…" in line]
    layers = lines[next(i for i, line in enumerate(lines) if line.startswith("layer")) :]
    assert all(len(line.split()) >= 6 for line in layers if line.strip() and "─" not in line)  # none is folded


def test_without_layers_the_phases_are_left(mmt):
    done = mmt("bench", "preset:tiny", *QUICK, "--no-layers")
    assert "caption" in done.out
    assert "blocks.0" not in done.out


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
        ((), {"model": "mini", "image": None, "batch_sizes": (1,), "prompt_tokens": 2, "gen_tokens": 20}),
        ((), {"repetitions": 5, "warmup": 2, "layers": True, "device": "auto", "dtype": "auto", "seed": 0}),
        (("preset:seed",), {"model": "preset:seed"}),
        (("-m", "some/folder"), {"model": "some/folder"}),
        (("--model", "mini"), {"model": "mini"}),
        ((), {"phase": "caption", "settings": {}}),
        (("--phase", "train"), {"phase": "train"}),
        (("--phase", "caption"), {"phase": "caption"}),
        (("preset:tiny", "--set", "a.b=2", "--set", "c=text"), {"settings": {"a.b": 2, "c": "text"}}),
        (("-b", "1,8,64"), {"batch_sizes": (1, 8, 64)}),
        (("--batch-size", "2"), {"batch_sizes": (2,)}),
        (("--prompt-tokens", "9"), {"prompt_tokens": 9}),
        (("--gen-tokens", "1"), {"gen_tokens": 1}),
        (("-r", "3"), {"repetitions": 3}),
        (("--repetitions", "4"), {"repetitions": 4}),
        (("--warmup", "0"), {"warmup": 0}),
        (("--no-layers",), {"layers": False}),
        (("--device", "cuda:1"), {"device": "cuda:1"}),
        (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
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
        (("mini", "-m", "preset:tiny"), 2),
        (("nowhere",), 5),
        (("mini", "--set", "text.num_layers=1"), 2),
        (("preset:tiny", "--set", "text.num_layers"), 2),
        (("preset:tiny", "--set", "text.layers=1"), 2),
        (("preset:tiny", "--phase", "decode"), 2),
        (("preset:tiny", "--phase", "train", "--image", "x.jpg"), 2),
        (("preset:tiny", "--phase", "train", "--dtype", "float16"), 2),
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
