"""`mmt caption` around a stand-in for the model: what is parsed, called, printed, and how it ends."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.run import item_seed
from mmt_cli.cli import caption_setup
from mmt_cli.cli.app import build, main
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError
from mmt_cli.inputs.image import MAX_PIXELS

OPTIONS = {
    "--prompt -p",
    "--recursive -r",
    "--files-from",
    "--null -0",
    "--shard",
    "--dry-run",
    "--max-pixels",
    "--max-errors",
    "--format -f",
    "--output -o",
    "--resume",
    "--sidecar",
    "--sidecar-ext",
    "--if-exists",
    "--prefix",
    "--suffix",
    "--stream --no-stream",
    "--report",
    "--grounding",
    "--model -m",
    "--revision",
    "--offline",
    "--tokenizer",
    "--no-split",
    "--quantize",
    "--system",
    "--device",
    "--dtype",
    "--max-new-tokens",
    "--min-new-tokens",
    "--num-beams",
    "--length-penalty",
    "--early-stopping",
    "--temperature",
    "--top-k",
    "--top-p",
    "--repetition-penalty",
    "--no-repeat-ngram-size",
    "--num-captions",
    "--stop-loops --no-stop-loops",
    "--batch-size -b",
    "--workers",
    "--threads",
    "--seed",
    "--quiet -q",
    "--debug",
}


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A folder with images of different sizes, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("d/sub").mkdir(parents=True)
    Path("empty").mkdir()
    for name, size in {"d/img2.png": (2, 1), "d/img10.png": (10, 1), "d/sub/x.png": (5, 5), "one.png": (3, 4)}.items():
        PIL.Image.new("RGB", size).save(name)
    Path("d/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def test_the_options_are_these_and_no_others():
    command = build().commands["caption"]
    given = [param for param in command.params if param.param_type_name == "option"]
    assert {" ".join([*param.opts, *param.secondary_opts]) for param in given} == OPTIONS
    assert not any(param.hidden for param in given)


def test_one_image_gives_its_bare_caption(mmt, fake):
    ended = mmt("caption", "one.png")
    assert (ended.code, ended.out) == (0, "3 by 4\n")
    assert len(ended.lines) == 1
    assert ended.err.startswith("mmt: 1 captioned, 0 failed in ")
    assert " images/s) on cpu, float32; the model " in ended.err


def test_several_images_give_a_path_each_and_failures_do_not_stop_them(mmt, fake):
    ended = mmt("caption", "d", "gone.jpg", "one.png")
    assert ended.code == 3
    assert ended.out == "d/img2.png\t2 by 1\nd/img10.png\t10 by 1\none.png\t3 by 4\n"
    broken, gone, summary = ended.lines
    assert broken.startswith("mmt: d/broken.png: ")
    assert gone == "mmt: gone.jpg: does not exist; check the path"
    assert summary.startswith("mmt: 3 captioned, 2 failed in ")


def test_one_missing_image_is_one_line_and_no_output(mmt, fake):
    ended = mmt("caption", "-q", "gone.jpg")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "mmt: gone.jpg: does not exist; check the path\n"


def test_a_single_image_in_a_folder_has_its_path(mmt, fake):
    assert mmt("caption", "d/sub").out == "d/sub/x.png\t5 by 5\n"


def test_recursive_goes_into_folders(mmt, fake):
    assert "x.png" not in mmt("caption", "d").out
    assert "d/sub/x.png\t5 by 5\n" in mmt("caption", "-r", "d").out


def test_tsv_has_a_line_for_each_image(mmt, fake):
    assert mmt("caption", "-f", "tsv", "gone.jpg").out == "gone.jpg\t\n"
    assert mmt("caption", "-f", "tsv", "one.png").out == "one.png\t3 by 4\n"


def test_jsonl_names_the_weights_and_hashes_them_once(mmt, fake):
    ended = mmt("caption", "--format", "jsonl", "--prompt", "a", "d")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert [record["path"] for record in records] == ["d/broken.png", "d/img2.png", "d/img10.png"]
    assert [record["caption"] for record in records] == [None, "a 2 by 1", "a 10 by 1"]
    assert [record["error"] and record["error"]["kind"] for record in records] == ["truncated", None, None]
    assert {record["model"] for record in records} == {"fake@0123456789ab"}
    assert {record["prompt"] for record in records} == {"a"}
    assert fake.fingerprints == 1


def test_text_does_not_hash_the_weights(mmt, fake):
    mmt("caption", "one.png")
    assert fake.fingerprints == 0


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--max-new-tokens", "7"], "max_new_tokens", 7),
        (["--min-new-tokens", "4"], "min_new_tokens", 4),
        (["--num-beams", "5"], "num_beams", 5),
        (["--length-penalty", "-0.5"], "length_penalty", -0.5),
        (["--early-stopping", "true"], "early_stopping", True),
        (["--early-stopping", "false"], "early_stopping", False),
        (["--early-stopping", "never"], "early_stopping", "never"),
        (["--temperature", "0.7"], "temperature", 0.7),
        (["--top-k", "9"], "top_k", 9),
        (["--top-p", "0.9"], "top_p", 0.9),
        (["--repetition-penalty", "1.3"], "repetition_penalty", 1.3),
        (["--no-repeat-ngram-size", "3"], "no_repeat_ngram_size", 3),
    ],
)
def test_options_of_generation_go_over_the_checkpoints_defaults(mmt, fake, arguments, name, value):
    # Defaults unlike the class's and unlike what is asked for.
    fake.generation = GenerationOptions(max_new_tokens=21, num_beams=2, early_stopping=value is False)
    assert mmt("caption", "one.png").code == 0
    assert mmt("caption", "one.png", *arguments).code == 0
    plain, changed = (call["options"] for call in fake.calls)
    assert plain == fake.generation
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    assert name == "max_new_tokens" or changed.max_new_tokens == 21


@pytest.mark.parametrize(
    ("arguments", "load"),
    [
        ([], ("mini", {"device": "auto", "dtype": "auto", "tokenizer": None})),
        (["-m", "some/dir"], ("some/dir", {"device": "auto", "dtype": "auto", "tokenizer": None})),
        (["--model=x.safetensors"], ("x.safetensors", {"device": "auto", "dtype": "auto", "tokenizer": None})),
        (["--device", "cuda:1"], ("mini", {"device": "cuda:1", "dtype": "auto", "tokenizer": None})),
        (["--dtype", "bfloat16"], ("mini", {"device": "auto", "dtype": "bfloat16", "tokenizer": None})),
        (["--tokenizer", "t.json"], ("mini", {"device": "auto", "dtype": "auto", "tokenizer": "t.json"})),
    ],
)
def test_options_of_the_model_reach_the_loader(mmt, fake, arguments, load):
    assert mmt("caption", "one.png", *arguments).code == 0
    [(reference, options)] = fake.loads
    del options["hub"], options["quantize"]
    assert (reference, options) == load


@pytest.mark.parametrize(
    ("arguments", "revision", "offline", "progress"),
    [([], None, False, True), (["--revision", "v1"], "v1", False, True), (["--offline", "-q"], None, True, False)],
)
def test_options_of_the_hub_reach_the_loader(mmt, fake, arguments, revision, offline, progress):
    assert mmt("caption", "one.png", "-m", "org/name", *arguments).code == 0
    [(reference, options)] = fake.loads
    hub = options["hub"]
    assert (reference, hub.revision, hub.offline, hub.progress) == ("org/name", revision, offline, progress)
    assert (hub.note is None) == ("-q" in arguments)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {"split": True, "system": None}),
        (["--no-split"], {"split": False, "system": None}),
        (["--system", "Be brief."], {"split": True, "system": "Be brief."}),
    ],
)
def test_how_a_model_is_asked_can_be_changed(mmt, fake, arguments, changes):
    assert mmt("caption", "one.png", *arguments).code == 0
    assert fake.adjustments == [changes]


@pytest.mark.parametrize(("arguments", "wanted"), [([], None), (["--quantize", "int8"], "int8")])
def test_a_model_is_loaded_in_8_bits_where_that_is_asked_for(mmt, fake, arguments, wanted):
    assert mmt("caption", "one.png", *arguments).code == 0
    [(_, options)] = fake.loads
    assert options["quantize"] == wanted


def test_no_other_kind_of_numbers_is_known(mmt, fake):
    refused = mmt("caption", "one.png", "--quantize", "int4")
    assert refused.code == 2 and "int4" in refused.err and "int8" in refused.err


@pytest.mark.parametrize("name", ["-p", "--prompt"])
def test_the_prompt_reaches_the_model(mmt, fake, name):
    assert mmt("caption", "one.png", name, "A é").out == "A é 3 by 4\n"


def test_batches_are_as_large_as_asked_for(mmt, fake):
    mmt("caption", "-b", "2", "one.png", "one.png", "one.png")
    assert [call["count"] for call in fake.calls] == [2, 1]
    fake.calls.clear()
    mmt("caption", *["one.png"] * 17)
    assert [call["count"] for call in fake.calls] == [16, 1]


def test_seed_and_path_make_the_draws(mmt, fake):
    mmt("caption", "one.png")
    mmt("caption", "one.png", "--seed", "7")
    assert [call["seeds"] for call in fake.calls] == [[item_seed(0, "one.png")], [item_seed(7, "one.png")]]


def test_threads_are_set_before_the_model_is_loaded(mmt, fake, monkeypatch):
    counts = []
    monkeypatch.setattr(caption_setup, "set_threads", lambda count: counts.append((count, len(fake.loads))))
    mmt("caption", "one.png", "--threads", "3")
    assert counts == [(3, 0)]


def test_images_with_too_many_pixels_are_refused(mmt, fake):
    ended = mmt("caption", "--max-pixels", "11", "-f", "jsonl", "one.png")
    assert ended.code == 3
    assert json.loads(ended.out)["error"]["kind"] == "too_large"
    assert mmt("caption", "--max-pixels", "12", "one.png").code == 0


def test_help_states_the_pixel_limit_that_holds(mmt):
    assert f"[default: {MAX_PIXELS}]" in mmt("caption", "--help").out


@pytest.mark.parametrize(
    ("limit", "code", "lines"),
    [
        ("0", 4, 1),
        ("1", 4, 3),
        ("2", 3, 4),
        ("0%", 4, 1),
        ("25%", 4, 3),
        ("49.9%", 4, 3),
        ("50%", 3, 4),
        ("100%", 3, 4),
    ],
)
def test_more_failures_than_allowed_stop_the_run(mmt, fake, limit, code, lines):
    ended = mmt("caption", "-f", "tsv", "--max-errors", limit, "gone1.png", "one.png", "gone2.png", "one.png")
    assert ended.code == code
    assert len(ended.out.splitlines()) == lines
    if code == 4:
        assert ended.lines[-1].startswith("mmt: error: stopped early (")


def test_percentages_are_exact(mmt, fake):
    # In binary floating point 18.4 % of 375 is less than 69.
    ended = mmt("caption", "--max-errors", "18.4%", *["gone.png"] * 69, *["one.png"] * 306)
    assert ended.code == 3


def test_a_shortest_length_may_pass_the_usual_longest_one(mmt, fake):
    fake.generation = GenerationOptions(max_new_tokens=60)
    assert mmt("caption", "one.png", "--min-new-tokens", "40").code == 0


def test_the_bar_is_shown_on_a_terminal_unless_quiet(mmt, fake, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "images: 1" in mmt("caption", "one.png").err
    assert mmt("caption", "-q", "one.png").err == ""


def test_quiet_prints_results_alone(mmt, fake):
    for name in ("-q", "--quiet"):
        ended = mmt("caption", name, "one.png")
        assert (ended.out, ended.err) == ("3 by 4\n", "")


def test_an_image_on_stdin(mmt, fake, monkeypatch):
    buffer = io.BytesIO(Path("one.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: False))
    assert mmt("caption", "-").out == "3 by 4\n"


def test_nothing_on_stdin_is_a_failed_image(mmt, fake, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False))
    ended = mmt("caption", "-q", "-")
    assert (ended.code, len(ended.lines)) == (3, 1)
    assert ended.err.startswith("mmt: -: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no image named"),
        (["empty"], "no image found (in 'empty', by suffix); add -r"),
        (["-r", "empty"], "no image found (in 'empty', by suffix); name another"),
        (["empty", "empty"], "no image found (in 2 places, by suffix)"),
        (["-", "one.png", "-"], "'-' is named 2 times"),
        (["one.png", "--top-p", "1.5"], "top_p is 1.5; use at most 1"),
        (["one.png", "--num-beams", "0"], "num_beams is 0; use at least 1"),
        (["one.png", "--num-beams", "2", "--top-k", "3"], "does not combine"),
        (["one.png", "--min-new-tokens", "5", "--max-new-tokens", "4"], "min_new_tokens 5 is more than"),
    ],
)
def test_wrong_usage_is_one_line_before_the_model_is_loaded(mmt, fake, arguments, words):
    ended = mmt("caption", *arguments)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1)
    assert ended.err.startswith("mmt: error: ")
    assert words in ended.err
    assert fake.loads == []


def test_a_terminal_is_no_image(mmt, fake, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    ended = mmt("caption", "-")
    assert ended.code == 2
    assert "stdin is a terminal" in ended.err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--batch-size", "0", "auto or a whole number from 1"),
        ("--batch-size", "1.5", "auto or a whole number from 1"),
        ("--batch-size", "٣", "auto or a whole number from 1"),
        ("--batch-size", "9" * 5000, "auto or a whole number from 1"),
        ("--threads", "0", "a whole number from 1"),
        ("--seed", "-1", "a whole number from 0"),
        ("--max-pixels", "0", "a whole number from 1"),
        ("--max-errors", "-1", "a number of images, or a percentage"),
        ("--max-errors", "101%", "a number of images, or a percentage"),
        ("--max-new-tokens", "ten", "a whole number"),
        ("--temperature", "nan", "a finite number"),
        ("--temperature", "1e999", "a finite number"),
        ("--top-p", "much", "a finite number"),
        ("--early-stopping", "maybe", "true, false or never"),
        ("--format", "xml", "text, tsv, jsonl or csv"),
        ("--dtype", "float64", "auto, float32, bfloat16 or float16"),
        ("--device", "gpu", "auto, cpu, cuda, cuda:N or mps"),
        ("--device", "cpu\n", "auto, cpu, cuda, cuda:N or mps"),
        ("--prompt", "\udcff", "text in the encoding of the terminal"),
    ],
)
def test_bad_values_name_the_option_the_value_and_what_is_expected(mmt, fake, option, value, expected):
    ended = mmt("caption", "one.png", f"{option}={value}")
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1)
    assert ended.err.startswith(f"mmt: error: bad value for {option} (got {value!r}"[:60])
    assert f"expected {expected}" in ended.err
    assert len(ended.err) < 250
    assert fake.loads == []


def test_a_prompt_beyond_the_context_is_wrong_usage(mmt, fake):
    ended = mmt("caption", "one.png", "--prompt", "x" * 51)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1)
    assert "51 tokens" in ended.err
    assert fake.calls == []


def test_a_model_that_cannot_be_loaded_ends_with_5(mmt, monkeypatch):
    def load(_cls, reference, **_options):
        raise ModelError(f"unknown model ({reference!r}); name another")

    monkeypatch.setattr(Captioner, "load", classmethod(load))
    ended = mmt("caption", "one.png", "-m", "nowhere")
    assert (ended.code, ended.err) == (5, "mmt: error: unknown model ('nowhere'); name another\n")


def test_ctrl_c_ends_with_130_and_says_how_far_it_came(mmt, fake):
    fake.raises = KeyboardInterrupt()
    ended = mmt("caption", "gone.png", "one.png", "-b", "1")
    assert ended.code == 130
    assert ended.lines[1].startswith("mmt: 0 captioned, 1 failed")
    assert ended.lines[2:] == ["mmt: interrupted"]


def test_a_bug_of_ours_ends_with_1_in_one_line(mmt, fake):
    fake.raises = ZeroDivisionError("oh\nno")
    ended = mmt("caption", "one.png")
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.err.startswith("mmt: error: a bug in mmt (ZeroDivisionError: oh\\nno); ")
    assert "--debug" in ended.err


def test_names_in_no_encoding_reach_a_pipe_as_they_are(fake, capfdbinary):
    Path("raw").mkdir()
    Path("one.png").rename(os.fsdecode(b"raw/\xff\xfe.png"))
    assert main(["caption", "raw"]) == 0
    assert capfdbinary.readouterr().out == b"raw/\xff\xfe.png\t3 by 4\n"
    assert main(["caption", "-f", "jsonl", "raw"]) == 0
    line = capfdbinary.readouterr().out
    assert b"raw/\\udcff\\udcfe.png" in line
    assert os.fsencode(json.loads(line)["path"]) == b"raw/\xff\xfe.png"


def test_hostile_names_and_captions_cannot_steer_a_terminal(mmt, fake, monkeypatch):
    fake.template = "\x1b[31m[b]\u202e\r{width}"
    Path("evil").mkdir()
    Path("one.png").rename("evil/\x1b]0;x\x07.png")
    Path("evil/\u202egnp.jpg").write_bytes(b"")
    raw = mmt("caption", "evil")
    assert raw.out == "evil/\x1b]0;x\x07.png\t\x1b[31m[b]\u202e\\r3\n"
    assert raw.lines[0].startswith("mmt: evil/\\u202egnp.jpg: ")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = mmt("caption", "evil")
    assert shown.out == "evil/\\x1b]0;x\\x07.png\t\\x1b[31m[b]\\u202e\\r3\n"
