import json
import os
import struct
import subprocess
import sys

import pytest

from mmt_cli.cli.app import build

FIGURES = {"vision": 15_296, "text": 11_136, "blocks": 17_088, "head": 64}


@pytest.fixture
def write_file(tmp_path):
    """Return a function that writes a safetensors file of float32 numbers, one a tensor, and gives its path."""

    def write(names, metadata=None):
        header = {"__metadata__": metadata} if metadata else {}
        header |= {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)
        }
        raw = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4 * len(names)))
        return str(path)

    return write


def rows_of(text):
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_table_shows_modules_modalities_and_the_total(mmt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = mmt("inspect", "preset:tiny", "--depth", "1")
    rows = rows_of(done.out)
    assert (done.code, done.err) == (0, "")
    assert {name: int(rows[name][2].replace(",", "")) for name in ("blocks", "head")} == {"blocks": 17_088, "head": 64}
    assert rows["total"][1:] == ["43,584", "100.0%", "F32", "174", "kB"]
    assert rows["text"][:2] == ["text", "28,288"]  # the last table: by modality


def test_the_options_are_these_and_no_others():
    command = build().commands["inspect"]
    names = [next(n for n in p.opts if n.startswith("--")) for p in command.params if p.param_type_name == "option"]
    assert names == ["--set", "--format", "--depth", "--quiet", "--debug"]


def test_settings_change_the_preset_and_are_shown(mmt):
    done = mmt("inspect", "preset:tiny", "--set", "text.num_layers=1", "--set", "text.head=own", "--depth", "1")
    assert int(rows_of(done.out)["blocks"][2].replace(",", "")) == 17_088 / 2
    assert int(rows_of(done.out)["head"][2].replace(",", "")) == 64 + 300 * 32
    assert done.out.splitlines()[-3:] == ["text.num_layers: 1", "", 'text.head: "own"']
    record = json.loads(mmt("inspect", "preset:tiny", "--set", "text.num_layers=1", "-f", "json").out)
    assert record["metadata"] == {"text.num_layers": "1"}


def test_settings_without_a_preset_are_refused_and_both_are_named(mmt):
    done = mmt("inspect", "mini", "--set", "text.num_layers=1")
    assert (done.code, done.out, len(done.lines)) == (2, "", 1)
    assert "(--set text.num_layers, model 'mini')" in done.err


def test_closed_pipe_ends_the_table_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mmt_cli", "inspect", "preset:tiny"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_depth_opens_the_tree(mmt):
    assert "    0 " not in mmt("inspect", "preset:tiny", "--depth", "2").out
    assert "    0 " in mmt("inspect", "preset:tiny", "--depth", "3").out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", ["mini", "seed"])
def test_table_fits_and_cuts_nothing(mmt, monkeypatch, columns, name):
    monkeypatch.setenv("COLUMNS", columns)
    out = mmt("inspect", f"preset:{name}").out
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "…" not in out


def test_json_is_one_line(mmt):
    done = mmt("inspect", "preset:tiny", "-f", "json", "--depth", "1", "-q")
    assert done.out.count("\n") == 1
    record = json.loads(done.out)
    assert {module["name"]: module["parameters"] for module in record["modules"]} == FIGURES
    assert (record["model"], record["parameters"]) == ("preset:tiny", 43_584)


def test_names_and_metadata_are_escaped_and_never_markup(mmt, write_file):
    file = write_file(["a.\x1b[31m[bold]b", "\u202ec"], {"note": "[red]x\x1b[2J\ny"})
    done = mmt("inspect", file)
    assert "[bold]b" in done.out
    assert "note: [red]x\\x1b[2J\\ny" in done.out
    assert not {"\x1b", "\u202e"} & set(done.out)


def test_thousands_of_modules_are_cut_but_counted(mmt, write_file):
    out = mmt("inspect", write_file([f"t{i}" for i in range(1_200)]), "--depth", "1").out
    assert "200 more rows" in out
    assert "1,200 parameters" in out
    assert len(out.splitlines()) < 1_020


def test_million_letters_of_a_name_are_cut(mmt, write_file):
    assert len(mmt("inspect", write_file(["n" * 1_000_000])).out) < 5_000


@pytest.mark.parametrize(
    ("arguments", "code"), [(("nowhere",), 5), (("preset:nope",), 2), (("preset:tiny", "--depth", "0"), 2)]
)
def test_error_is_one_line(mmt, arguments, code):
    done = mmt("inspect", *arguments)
    assert (done.code, done.out, len(done.lines)) == (code, "", 1)
    assert done.err.startswith("mmt: error: ")


def test_broken_file_is_a_broken_model(mmt, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 8)
    done = mmt("inspect", str(tmp_path / "x.safetensors"))
    assert (done.code, len(done.lines)) == (5, 1)


def test_folder_is_read_without_torch_or_numpy(tmp_path, tools):
    from mmt_cli.checkpoint.load import default_preprocessing, save_checkpoint
    from mmt_cli.decoding.options import GenerationOptions

    model = tools.build_model(tools.small_config("tiny"))
    save_checkpoint(
        tmp_path / "model",
        model,
        tokenizer=None,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="",
    )
    code = (
        "import sys; from mmt_cli.cli.app import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'transformers', 'PIL', 'safetensors'} & set(sys.modules)), code)"
    )
    for format_ in ("table", "json"):
        command = [sys.executable, "-c", code, "inspect", str(tmp_path / "model"), "-f", format_]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
