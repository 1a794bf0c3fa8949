"""`mmt inspect` with what looks closer: every option, every format, and files that are broken on purpose."""

import csv
import io
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.cli import inspect_views
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset

DATA = Path(os.environ.get("MMT_TEST_DATA", ""), "torture")
QKV = "blocks.0.attention.inner.qkv.weight"
# What the library refuses, by its verdicts; the other files are odd in names, metadata or values alone.
OPENED = {"dtype_c64", "dup_key_same", "extra_field", "inf", "meta_markup", "name_1mb", "name_nul", "nan", "rank_100k"}
OPENED |= {"scalar", "trail_space", "zero_dim_rank64"}


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory):
    """A tiny model of ours, with a tokenizer."""
    tokenizer = train_tokenizer(["A dog runs over the grass.", "Two dogs in the grass."] * 2, 300)
    model = tools.build_model(preset("tiny", {"text.vocab_size": tokenizer.vocab_size}))
    folder = tmp_path_factory.mktemp("made") / "little"
    save_checkpoint(
        folder,
        model,
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="",
    )
    return folder


@pytest.fixture
def broken(made, tmp_path):
    """The same with a NaN, and a name that would steer the terminal."""
    folder = shutil.copytree(made, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors[QKV][0, 0] = float("nan")
    tensors["\x1b[31mred"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def bare(tmp_path):
    """A file with one short tensor, and one whose name is markup."""
    save_file({"a.weight": torch.zeros(2, 3), "b|[red]": torch.ones(())}, tmp_path / "x.safetensors", {"k": "<i>"})
    return str(tmp_path / "x.safetensors")


def rows_of(out):
    return list(csv.DictReader(io.StringIO(out)))


def test_tensors_take_a_line_each(mmt, made, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    tensors = load_file(made / "model.safetensors")
    out = mmt("inspect", str(made), "--tensors").out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert tensors.keys() <= lines.keys()
    assert lines[QKV].split()[1:3] == ["text", "F32"]
    assert " x ".join(map(str, tensors[QKV].shape)) in lines[QKV]
    assert rows_of(mmt("inspect", str(made), "--tensors", "-f", "csv").out)[0].keys() == {
        *("name", "modality", "dtype", "shape", "parameters", "bytes")
    }


def test_a_scalar_has_a_shape_too(mmt, bare):
    line = next(line for line in mmt("inspect", bare, "--tensors").out.splitlines() if line.startswith("b|"))
    assert line.split() == ["b|[red]", "F32", "scalar", "4", "B"]


def test_settings_and_hashes_are_shown_when_asked_for(mmt, made, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    plain = json.loads(mmt("inspect", str(made), "-f", "json").out)
    asked = json.loads(mmt("inspect", str(made), "-f", "json", "--config", "--sha256").out)
    assert asked.keys() - plain.keys() == {"config", "sha256"}
    assert asked["config"]["text"]["num_layers"] == 2
    out = mmt("inspect", str(made), "--config", "--sha256").out
    assert ["text.num_layers", "2"] in [line.split() for line in out.splitlines()]
    assert ["model.safetensors", asked["sha256"]["model.safetensors"]] in [line.split() for line in out.splitlines()]
    assert "text.num_layers" not in mmt("inspect", str(made)).out


def test_csv_has_the_numbers_themselves(mmt, made):
    rows = rows_of(mmt("inspect", str(made), "--depth", "1", "-f", "csv").out)
    modules = json.loads(mmt("inspect", str(made), "--depth", "1", "-f", "json").out)["modules"]
    assert rows == [{key: str(value) for key, value in module.items()} for module in modules]


def test_markdown_has_tables_and_nothing_in_them_is_markup(mmt, bare):
    lines = mmt("inspect", bare, "--tensors", "-f", "md").out.splitlines()
    assert lines[0] == "**x (safetensors): 7 parameters, 28 B in 2 tensors**"
    assert lines[2:4] == ["| tensor | modality | dtype | shape | bytes |", "| --- | --- | ---: | ---: | ---: |"]
    assert lines[5] == "| b\\|\\[red] |  | F32 | scalar | 4 B |"
    assert lines[-1] == "- k: \\<i>"


def test_a_sound_model_passes_the_check(mmt, made):
    done = mmt("inspect", str(made), "--check")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("little (mmt): sound in ")
    assert json.loads(mmt("inspect", str(made), "--check", "-f", "json").out)["sound"] is True


def test_findings_take_a_line_each_and_end_with_exit_code_5(mmt, broken, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    done = mmt("inspect", broken, "--check")
    assert (done.code, done.lines) == (5, ["mmt: error: " + done.lines[0].removeprefix("mmt: error: ")])
    assert "('broken', 2 findings)" in done.err
    assert done.out.splitlines()[-2:] == [
        "tensors: \\x1b[31mred is unexpected",
        f"values: {QKV} 1 NaN among {load_file(Path(broken) / 'model.safetensors')[QKV].numel():,} numbers",
    ]
    record = mmt("inspect", broken, "--check", "-f", "json")
    assert (record.code, record.out.count("\n")) == (5, 1)
    assert [f["part"] for f in json.loads(record.out)["findings"]] == ["tensors", "values"]
    assert [row["part"] for row in rows_of(mmt("inspect", broken, "--check", "-f", "csv").out)] == ["tensors", "values"]


def test_statistics_are_shown_by_module_and_by_tensor(mmt, made):
    out = mmt("inspect", str(made), "--stats", "--depth", "1").out
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["vision", "text", "blocks", "head"]
    tensors = json.loads(mmt("inspect", str(made), "--stats", "--tensors", "-f", "json").out)["stats"]
    assert QKV in {row["name"] for row in tensors}
    assert all(sum(row["histogram"]) == row["count"] for row in tensors)


def test_numbers_that_are_none_are_told_beside_the_statistics(mmt, tmp_path):
    save_file({"odd": torch.tensor([1.0, float("nan")])}, tmp_path / "x.safetensors")
    assert mmt("inspect", str(tmp_path / "x.safetensors"), "--stats").out.splitlines()[-1] == "odd: 1 NaN, 0 Inf"


@pytest.mark.parametrize(("encoding", "drawn"), [("utf-8", "▁▄█ "), ("ascii", ".=@ "), ("latin-1", ".=@ ")])
def test_a_histogram_is_drawn_with_what_the_terminal_can_show(monkeypatch, encoding, drawn):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert inspect_views.drawn([1, 40, 80, 0]) == drawn
    assert inspect_views.drawn([0, 0]) == "  "


def test_two_models_are_compared(mmt, made, broken, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    out = mmt("inspect", str(made), "--diff", broken, "--depth", "1").out
    assert out.startswith("little (mmt) and broken (mmt): ")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["text"][1:3] == ["same", "text"]
    for width in ("80", "120"):
        monkeypatch.setenv("COLUMNS", width)
        narrow = mmt("inspect", str(made), "--diff", broken, "--depth", "1").out
        assert max(map(len, narrow.splitlines())) <= int(width)
        assert narrow.splitlines()[2].endswith("relative L2  cosine  max")
    record = json.loads(mmt("inspect", str(made), "--diff", broken, "--depth", "1", "-f", "json").out)
    assert {row["name"]: row["status"] for row in record["modules"]}["blocks"] == "changed"
    assert (record["model"], record["other"]) == ("little", "broken")


def test_tokens_are_shown_with_their_places_and_the_prompt_around_them(mmt, made):
    done = mmt("inspect", str(made), "--tokens", "A dog")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert ["Ġdog", "dog", "text", "1-5"] in [line[:4] for line in lines]
    assert ["<bos>", "special", "1", "1"] in lines
    record = json.loads(mmt("inspect", str(made), "--tokens", "A dog", "-f", "json").out)
    assert record["image"] == {"tokens": 16, "tiles": 1, "in_prompt": False}
    assert rows_of(mmt("inspect", str(made), "--tokens", "A dog", "-f", "csv").out)[1]["piece"] == "Ġdog"


def test_text_for_tokens_is_escaped(mmt, made):
    assert "\x1b" not in mmt("inspect", str(made), "--tokens", "\x1b[31m").out


def test_a_model_is_written_and_is_the_same(mmt, made, tmp_path):
    out = str(tmp_path / "out")
    done = mmt("inspect", str(made), "--save", out, "--dtype", "float16", "--shard-size", "50kB")
    assert (done.code, done.err) == (0, "")
    assert "model.safetensors.index.json" in done.out
    record = json.loads(mmt("inspect", str(made), "--diff", out, "-f", "json").out)
    assert {row["status"] for row in record["modules"]} == {"same"}
    again = mmt("inspect", str(made), "--save", out)
    assert (again.code, len(again.lines)) == (2, 1)
    alone = json.loads(mmt("inspect", str(made), "--save", out + "2", "--only-safetensors", "-f", "json").out)
    assert [file["name"] for file in alone["files"]] == ["model.safetensors"]
    assert mmt("inspect", str(made), "--save", out + "3", "--save-format", "hf").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--check", "--stats"), "(--check and --stats given)"),
        (("--image", "a.jpg", "--diff", "mini"), "(--diff and --image given)"),
        (("--dtype", "float16"), "(--dtype 'float16', --save or --plan missing)"),
        (("--save-format", "mmt"), "(--save-format 'mmt', --save missing)"),
        (("--shard-size", "1GB"), "(--shard-size '1GB', --save missing)"),
        (("--only-safetensors",), "(--only-safetensors, --save missing)"),
        (("--tokenizer", "x.json"), "(--tokenizer 'x.json', --tokens or --check missing)"),
        (("--tokens", "a", "--prompt", "b"), "(--prompt 'b', --image missing)"),
        (("--tokens", "\udcff"), "bad value for --tokens"),
        (("--save", "x", "--shard-size", "0"), "bad value for --shard-size (got '0'"),
        (("--save", "x", "--shard-size", "1.5GB"), "bad value for --shard-size (got '1.5GB'"),
        (("--check", "--set", "a=1"), "--set"),
        (("-f", "jsonl"), "bad value for --format (got 'jsonl'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(mmt, arguments, words):
    done = mmt("inspect", "mini", *arguments)
    assert (done.code, done.out, len(done.lines)) == (2, "", 1)
    assert words in done.err


@pytest.mark.parametrize("look", [("--check",), ("--stats",), ("--diff", "mini"), ("--save", "x")])
def test_a_preset_has_no_weights_to_look_at(mmt, look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mmt("inspect", "preset:tiny", *look)
    assert (done.code, done.out, len(done.lines)) == (2, "", 1)
    assert "a preset has no weights" in done.err


@pytest.mark.skipif(not DATA.is_dir(), reason="MMT_TEST_DATA names no folder with torture files")
@pytest.mark.parametrize("path", sorted(DATA.glob("safetensors_bad/*.safetensors")), ids=lambda path: path.stem)
@pytest.mark.parametrize("look", [(), ("--check",), ("--stats",), ("--tensors",)], ids=lambda look: "".join(look))
def test_a_malformed_file_ends_in_one_line(mmt, path, look):
    done = mmt("inspect", str(path), *look)
    assert done.code == 5 if path.stem not in OPENED else done.code in (0, 5)
    assert len(done.lines) == (done.code == 5)
    assert all(c.isprintable() or c == "\n" for c in done.out + done.err)
    assert len(done.out) < 5_000


@pytest.mark.skipif(not DATA.is_dir(), reason="MMT_TEST_DATA names no folder with torture files")
@pytest.mark.parametrize("path", sorted(DATA.glob("tokenizer_bad/*.json")), ids=lambda path: path.stem)
def test_a_hostile_tokenizer_ends_in_one_line(mmt, made, tmp_path, path):
    folder = shutil.copytree(made, tmp_path / "hostile")
    shutil.copy(path, folder / "tokenizer.json")
    for look in (("--check",), ("--tokens", "A dog")):
        done = mmt("inspect", str(folder), *look)
        assert (done.code, len(done.lines)) == (5, 1)
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)


def test_names_steer_no_terminal(broken):
    """A terminal of its own, which rich and `console` take for a real one."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "mmt_cli", "inspect", broken, "--check"]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
    os.close(parent)
    assert done.wait(60) == 5
    assert b"\x1b[31m" not in shown and b"\\x1b[31mred is unexpected" in shown


def test_a_hundred_thousand_tensors_are_few_lines(mmt, tmp_path):
    count = 100_000
    entries = {
        f"model.layers.{i // 100}.part{i % 100}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(count)
    }
    raw = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(count))
    for more in ((), ("--tensors",), ("--depth", "4")):
        out = mmt("inspect", str(tmp_path / "x.safetensors"), *more).out
        assert "100,000 parameters" in out and len(out.splitlines()) < 1_020
        assert ("more rows" in out) == bool(more)


@pytest.mark.slow
def test_a_header_takes_little_longer_than_help_and_15_gigabytes_little_memory(tmp_path):
    names = [f"model.layers.{i // 10}.part{i % 10}.weight" for i in range(1_000)]
    step = 15 * 2**20  # bytes each: 15 GiB in all
    entries = {
        n: {"dtype": "U8", "shape": [step], "data_offsets": [i * step, (i + 1) * step]} for i, n in enumerate(names)
    }
    raw = json.dumps(entries).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 1_000 * step)

    # As it is installed: compiled, which some machines leave out.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")

    def seconds(*arguments):
        """CPU time of the fastest of nine runs: others may be busy on this machine."""
        spent = []
        for _ in range(9):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "mmt_cli", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(spent)

    assert seconds("inspect", str(tmp_path / "x.safetensors")) <= 1.5 * seconds("--help")
    assert seconds("inspect", "mini") <= 1.6 * seconds("--help")
    # What the system counts for getrusage begins with the memory of the parent; this begins anew.
    code = (
        "import pathlib, sys; from mmt_cli.cli.app import main; main(sys.argv[1:]); "
        "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "x.safetensors")], capture_output=True, text=True
    )
    assert int(done.stdout.splitlines()[-1]) < 100 * 1024  # KiB
