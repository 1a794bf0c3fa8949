import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.cli.app import build
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.gate import TanhGate
from mmt_cli.model.presets import preset

PHOTO = str(Path(__file__).parent.parent / "data/dog.jpg")
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
    assert names == [
        *(
            "--set",
            "--revision",
            "--offline",
            "--tokenizer",
            "--format",
            "--depth",
            "--tensors",
            "--config",
            "--sha256",
        ),
        *("--check", "--stats", "--diff", "--tokens", "--image", "--prompt"),
        *("--attention", "--layer", "--head", "--rollout", "--plan"),
        *("--batch-size", "--image-size", "--tiles", "--prompt-tokens", "--gen-tokens", "--num-beams"),
        *("--save", "--save-format", "--dtype", "--shard-size", "--only-safetensors", "--quiet", "--debug"),
    ]


def test_settings_change_the_preset_and_are_shown(mmt):
    done = mmt("inspect", "preset:tiny", "--set", "text.num_layers=1", "--set", "text.head=own", "--depth", "1")
    assert int(rows_of(done.out)["blocks"][2].replace(",", "")) == 17_088 / 2
    assert int(rows_of(done.out)["head"][2].replace(",", "")) == 64 + 300 * 32
    assert done.out.splitlines()[-2:] == ["text.num_layers: 1", 'text.head: "own"']
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


@pytest.fixture
def gated(tmp_path, tools):
    """Return a function that saves a tiny model with strong random weights and gives its folder."""

    def build_folder(strength=None, **settings):
        tokenizer = train_tokenizer(["A dog runs over the grass.", "Two dogs in the grass."] * 2, 300)
        model = tools.build_model(preset("tiny", {"text.vocab_size": tokenizer.vocab_size, **settings}))
        for gate in (module for module in model.modules() if strength is not None and type(module) is TanhGate):
            gate.strength.fill_(strength)
        save_checkpoint(
            tmp_path / "gated",
            model,
            tokenizer=tokenizer,
            preprocessing=default_preprocessing(model.config),
            generation=GenerationOptions(max_new_tokens=12),
            card="",
        )
        return str(tmp_path / "gated")

    return build_folder


def columns_of(out, gates):
    """Return head and figures of each column of the tables of words, in order."""
    lines, columns = out.splitlines(), []
    for index, line in enumerate(lines):
        if line.split()[:1] == ["gate"] and "mean" not in line and "all tokens" not in line:
            rows = [row.split()[1:] for row in lines[index + 2 : index + 2 + gates]]
            heads = line.split()[1:]
            assert {len(row) for row in rows} == {len(heads)}
            columns += zip(heads, *rows, strict=True)
    return columns


@pytest.mark.parametrize("width", ["80", "46"])
@pytest.mark.parametrize("kind", ["concat", "gated_cross"])
def test_gates_are_shown_for_every_word_with_two_decimals(mmt, monkeypatch, gated, kind, width):
    monkeypatch.setenv("COLUMNS", width)
    folder = gated(fusion={"kind": kind, "gate": "dynamic"})
    asked = ("inspect", folder, "--image", PHOTO, "--prompt", "A dog runs over the grass.")
    done, record = mmt(*asked), json.loads(mmt(*asked, "-f", "json").out)["gates"]
    gates = [gate for gate in record["gates"] if gate["name"] != "fusion.image"]
    heads = [token.strip() or repr(token) for token in record["tokens"]]
    assert all(head.isprintable() for head in heads), "another seed, please"
    expected = zip(heads, *([f"{value:z.2f}" for value in gate["values"]] for gate in gates), strict=True)
    columns = [tuple("".join(cell.split()) for cell in column) for column in expected]
    assert (done.code, done.err) == (0, "")
    assert columns_of(done.out, len(gates)) == columns
    assert done.out.splitlines()[0].startswith("A dog runs over the grass.")
    assert ("Factors 1 + gate" in done.out, "Gates: factors" in done.out) == (kind == "concat", kind != "concat")
    assert [line.split()[0] for line in done.out.splitlines() if line.startswith(gates[0]["name"])]
    assert max(map(len, done.out.splitlines())) <= int(width)
    assert "…" not in done.out


def test_gates_of_the_image_are_shown_as_figures_and_as_they_lie_in_the_picture(mmt, gated):
    folder = gated(**{"fusion.gate": "dynamic"})
    done, record = (mmt("inspect", folder, "--image", PHOTO, "-f", f) for f in ("table", "json"))
    values = json.loads(record.out)["gates"]["gates"][0]["values"]
    row = next(line.split() for line in done.out.splitlines() if line.startswith("fusion.image"))
    assert row[1:] == ["16", *(f"{value:z.2f}" for value in (min(values), sum(values) / 16, max(values)))]
    assert done.out.splitlines()[-4:] == [" ".join(f"{v:z.2f}" for v in values[i : i + 4]) for i in (0, 4, 8, 12)]


@pytest.mark.parametrize(("patch", "width", "rows"), [(2, "80", 16), (2, "78", 0), (1, "200", 0)])
def test_cells_of_a_picture_are_shown_where_they_can_be_taken_in(mmt, monkeypatch, gated, patch, width, rows):
    monkeypatch.setenv("COLUMNS", width)
    folder = gated(**{"fusion.gate": "dynamic", "vision.patch_size": patch, "text.max_length": 16})
    out = mmt("inspect", folder, "--image", PHOTO).out
    row = next(line.split() for line in out.splitlines() if line.startswith("fusion.image"))
    assert row[1] == str((32 // patch) ** 2)
    cells = [line.split() for line in out.splitlines() if line[1:2] == "."]
    assert [len(line) for line in cells] == [16] * rows


def test_a_learned_gate_is_shown_once(mmt, gated):
    folder = gated(fusion={"kind": "cross", "gate": "tanh"})
    done, record = (mmt("inspect", folder, "--image", PHOTO, "-f", f) for f in ("table", "json"))
    gates = json.loads(record.out)["gates"]["gates"]
    assert [line.split() for line in done.out.splitlines()[-2:]] == [
        [gate["name"], f"{gate['values']:z.2f}"] for gate in gates
    ]
    assert done.out.count("cross_attention") == 2


@pytest.mark.parametrize(("strength", "shown"), [(-0.001, "0.00"), (-0.5, "-0.46")])
def test_nearly_nothing_has_no_sign(mmt, gated, strength, shown):
    folder = gated(strength, fusion={"kind": "cross", "gate": "tanh"})
    assert mmt("inspect", folder, "--image", PHOTO).out.splitlines()[-1].split()[1] == shown


def test_the_record_with_gates_is_the_one_without_and_two_keys(mmt, gated):
    folder = gated(**{"fusion.gate": "dynamic"})
    plain = json.loads(mmt("inspect", folder, "-f", "json", "--depth", "1").out)
    done = mmt("inspect", folder, "-f", "json", "--depth", "1", "--image", PHOTO, "-p", "A dog")
    record = json.loads(done.out)
    gates, image = record.pop("gates"), record.pop("image")
    assert image["caption"] == gates["caption"]
    assert (record, done.out.count("\n")) == (plain, 1)
    assert list(gates) == ["caption", "tokens", "gates"]
    assert gates["tokens"][:2] == [" A", " dog"]
    assert gates["caption"].startswith("A dog")
    assert [list(gate) for gate in gates["gates"]] == [["name", "kind", "values"]] * 2
    assert [len(gate["values"]) for gate in gates["gates"]] == [16, len(gates["tokens"])]
    assert gates["caption"] == mmt("caption", PHOTO, "-m", folder, "-p", "A dog").out.strip()


def test_words_of_a_caption_are_escaped_and_never_markup(mmt, gated):
    out = mmt("inspect", gated(**{"fusion.gate": "dynamic"}), "--image", PHOTO, "-p", "\x1b[red]\u202e:dog:").out
    assert out.startswith("\\x1b[red]\\u202e:dog:")
    assert not {"\x1b", "\u202e"} & set(out)
    heads = next(line.split() for line in out.splitlines() if line.startswith("gate "))
    assert heads[:9] == [
        "gate",
        "'",
        "'",
        "\\x1b",
        "[",
        "r",
        "e",
        "d",
        "]",
    ]  # the blank before the first word is a piece


def test_a_caption_without_a_word_still_shows_the_image(mmt, gated, monkeypatch):
    folder = gated(**{"fusion.gate": "dynamic"})
    generation = Path(folder, "generation.json")
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"max_new_tokens": 0}))
    done = mmt("inspect", folder, "--image", PHOTO)
    assert (done.code, columns_of(done.out, 1)) == (0, [])
    assert "fusion.text" not in done.out
    assert "fusion.image" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("preset:tiny", "--image", "a.jpg"), 2, "(model 'preset:tiny', --image 'a.jpg')"),
        (("mini", "--prompt", "A"), 2, "(--prompt 'A', --image missing)"),
        (("GATED", "--image", "a.jpg"), 3, "a.jpg does not exist"),
        (("GATED", "--image", __file__), 3, "is none of JPEG"),
        (("GATED", "--image", PHOTO, "--prompt", "dog " * 60), 2, "the prompt is too long"),
        (("GATED", "--image", PHOTO, "--prompt", "\udcff"), 2, "bad value for --prompt"),
        (("GATED", "--image", PHOTO, "--set", "text.num_layers=1"), 2, "--set text.num_layers"),
    ],
)
def test_what_shows_no_gates_says_why_in_one_line(mmt, gated, arguments, code, words):
    folder = gated(**{"fusion.gate": "tanh"})
    done = mmt("inspect", *(folder if argument == "GATED" else argument for argument in arguments))
    assert (done.code, done.out, len(done.lines)) == (code, "", 1)
    assert words in done.err
