"""`mmt caption` as a tool for many files: lists, shares, output files, sidecars, reports, dry runs."""

import csv
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest

from mmt_cli.cli import caption_setup
from mmt_cli.decoding.options import GenerationOptions


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A folder with images of different sizes, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for width in (1, 2, 10):
        PIL.Image.new("RGB", (width, 1)).save(f"d/img{width}.png")
    return tmp_path


NAMES = ["d/img1.png", "d/img2.png", "d/img10.png"]
LINES = ["d/img1.png\t1 by 1\n", "d/img2.png\t2 by 1\n", "d/img10.png\t10 by 1\n"]


def test_a_list_names_images_in_its_order_and_may_follow_arguments(mmt, fake):
    Path("list").write_text("d/img10.png\n\nd/img1.png\r\n", encoding="utf-8")
    assert mmt("caption", "--files-from", "list").out == LINES[2] + LINES[0]
    assert mmt("caption", "d/img2.png", "--files-from", "list").out == LINES[1] + LINES[2] + LINES[0]


@pytest.mark.parametrize("flag", ["-0", "--null"])
def test_names_may_end_in_nul(mmt, fake, flag):
    Path("d/img1.png").rename("new\nline.png")
    Path("list").write_bytes(b"new\nline.png\0d/img2.png")
    assert mmt("caption", "--files-from", "list", flag).out == "new\\nline.png\t1 by 1\n" + LINES[1]


def test_a_list_comes_on_stdin(mmt, fake, monkeypatch):
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"d/img2.png\n")), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert mmt("caption", "--files-from", "-").out == LINES[1]


def test_a_list_may_give_each_image_a_prompt(mmt, fake):
    Path("list").write_text(
        '{"path": "d/img1.png", "prompt": "one"}\n{"path": "d/img2.png"}\nd/img10.png\n', encoding="utf-8"
    )
    ended = mmt("caption", "--files-from", "list", "--prompt", "all", "-f", "jsonl")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert [record["prompt"] for record in records] == ["one", "all", "all"]
    assert [record["caption"] for record in records] == ["one 1 by 1", "all 2 by 1", "all 10 by 1"]


def test_shards_are_images_of_a_name_within(mmt, fake):
    with tarfile.open("s.tar", "w") as archive:
        archive.add("d/img2.png", "k2.png")
        archive.add("d/img1.png", "k1.png")
        archive.add("d", "k1.txt", recursive=False)
    assert mmt("caption", "s.tar").out == "s.tar/k2.png\t2 by 1\ns.tar/k1.png\t1 by 1\n"


def test_shares_cover_a_list_once(mmt, fake):
    shares = [mmt("caption", "d", "--shard", f"{index}/2").out for index in range(2)]
    assert shares == [LINES[0] + LINES[2], LINES[1]]
    assert mmt("caption", "d", "--shard", "2/2").code == 2


def test_a_share_of_nothing_is_no_mistake(mmt, fake):
    ended = mmt("caption", "d/img1.png", "--shard", "1/2")
    assert (ended.code, ended.out) == (0, "")


def test_csv_begins_with_a_header_and_keeps_newlines(mmt, fake):
    fake.template = 'a\n"{width}", b'
    ended = mmt("caption", "d", "gone.png", "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.out, newline="")))
    assert [row["path"] for row in rows] == [*NAMES, "gone.png"]
    assert rows[1]["caption"] == 'a\n"2", b'
    assert rows[1]["tokens"] == "1 2"
    assert rows[3]["error"].startswith("missing: ")
    assert ended.out.count("\r\n") == 5


def test_csv_on_a_terminal_has_plain_line_ends(mmt, fake, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert mmt("caption", "d/img1.png", "-f", "csv").out.count("\n") == 2
    assert "\\r" not in mmt("caption", "d/img1.png", "-f", "csv").out


def test_several_captions_have_ranks(mmt, fake):
    fake.generation = GenerationOptions(num_beams=2)
    records = [
        json.loads(line) for line in mmt("caption", "d/img1.png", "--num-captions", "2", "-f", "jsonl").out.splitlines()
    ]
    assert [(record["rank"], record["caption"]) for record in records] == [(1, "1 by 1"), (2, "1 by 1!")]
    assert list(records[0])[-2:] == ["error", "rank"]
    assert mmt("caption", "d/img1.png", "--num-captions", "2").out == "1 by 1\n1 by 1!\n"


def test_several_captions_take_the_checkpoints_beams(mmt, fake):
    fake.generation = GenerationOptions(num_beams=4)
    assert mmt("caption", "d/img1.png", "--num-captions", "4").code == 0
    assert fake.calls[0]["options"].num_beams == 4
    assert mmt("caption", "d/img1.png", "--num-captions", "5").code == 2


@pytest.mark.parametrize("flag", ["--stop-loops", "--no-stop-loops"])
def test_loops_are_stopped_as_asked(mmt, fake, flag):
    fake.generation = GenerationOptions(stop_loops=flag == "--no-stop-loops")
    mmt("caption", "d/img1.png")
    mmt("caption", "d/img1.png", flag)
    assert [call["options"].stop_loops for call in fake.calls] == [flag == "--no-stop-loops", flag == "--stop-loops"]


def test_grounding_adds_what_the_image_says(mmt, fake, monkeypatch):
    monkeypatch.setattr(caption_setup, "image_gains", lambda captioner, pictures, *_: [[2.5]] * len(pictures))
    record = json.loads(mmt("caption", "d/img1.png", "--grounding", "-f", "jsonl").out)
    assert record["image_gain"] == 2.5
    assert "image_gain" not in json.loads(mmt("caption", "d/img1.png", "-f", "jsonl").out)


def test_prefix_and_suffix_go_around_each_caption(mmt, fake):
    assert mmt("caption", "d/img1.png", "--prefix", "<", "--suffix", ">").out == "<1 by 1>\n"


# Output files


def test_an_output_file_holds_the_records_and_beside_it_how_it_was_made(mmt, fake):
    ended = mmt("caption", "d", "-o", "out.tsv", "-f", "tsv", "--prompt", "p")
    assert (ended.code, ended.out) == (0, "")
    assert Path("out.tsv").read_text() == "".join(line.replace("\t", "\tp ") for line in LINES)
    settings = json.loads(Path("out.tsv.mmt").read_text())["settings"]
    assert (settings["model"], settings["prompt"]) == ("fake@0123456789ab", "p")


def test_a_run_goes_on_where_its_file_ends(mmt, fake):
    common = ("caption", "d", "gone.png", "-f", "jsonl", "-o", "out", "--resume")
    mmt(*common)
    whole = Path("out").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("out").write_bytes(lines[0] + lines[1][:20])
    fake.calls.clear()
    ended = mmt(*common)
    assert ended.code == 3
    assert sum(call["count"] for call in fake.calls) == 2
    assert "2 captioned, 1 failed, 1 skipped" in ended.err
    paths = [json.loads(line)["path"] for line in Path("out").read_text().splitlines()]
    assert paths == [*NAMES, "gone.png"]
    again = mmt(*common)
    assert again.code == 0
    assert "0 captioned, 0 failed, 4 skipped" in again.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", "x"], "prompt"),
        (["--max-new-tokens", "3"], "max_new_tokens"),
        (["--prefix", "x"], "prefix"),
        (["--seed", "5"], "seed"),
        (["-f", "csv"], "format"),
        (["--no-stop-loops"], "stop_loops"),
        (["--no-split"], "split"),
        (["--quantize", "int8"], "quantize"),
        (["--system", "x"], "system"),
    ],
)
def test_a_file_made_otherwise_is_not_gone_on_with(mmt, fake, arguments, named):
    fake.generation = GenerationOptions(stop_loops=True)
    mmt("caption", "d", "-f", "jsonl", "-o", "out")
    before = Path("out").read_bytes()
    ended = mmt(
        "caption", "d", "-o", "out", "--resume", *(["-f", "jsonl"] if "-f" not in arguments else []), *arguments
    )
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert named in ended.err
    assert Path("out").read_bytes() == before


def test_a_file_is_replaced_only_when_there_is_something_to_put_in_its_place(mmt, fake):
    Path("out").write_text("precious\n")
    assert mmt("caption", "nothing-here/", "-o", "out", "--top-p", "7").code == 2
    assert Path("out").read_text() == "precious\n"
    assert mmt("caption", "d", "-o", "out").code == 0
    assert Path("out").read_text() == "".join(LINES)


def test_the_output_in_the_input_folder_is_no_image(mmt, fake):
    ended = mmt("caption", "d", "-o", "d/captions.png", "--report", "d/page.jpg")
    assert ended.code == 0
    assert Path("d/captions.png").read_text() == "".join(LINES)


def test_a_full_disk_is_named(mmt, fake):
    ended = mmt("caption", "-q", "d", "-o", "/dev/full")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "/dev/full" in ended.err
    assert "No space left" in ended.err


# Sidecars


def test_sidecars_stand_beside_each_image(mmt, fake):
    ended = mmt("caption", "d", "--sidecar", "--suffix", "!")
    assert ended.out == "".join(line.replace("\n", "!\n") for line in LINES)
    assert {path.name: path.read_text() for path in Path("d").glob("*.txt")} == {
        "img1.txt": "1 by 1!\n",
        "img2.txt": "2 by 1!\n",
        "img10.txt": "10 by 1!\n",
    }


@pytest.mark.parametrize(
    ("how", "content", "count"),
    [
        (["--if-exists", "skip"], "old", 2),
        ([], "old", 2),
        (["--if-exists", "overwrite"], "1 by 1\n", 3),
        (["--if-exists", "append"], "old\n1 by 1\n", 3),
        (["--if-exists", "prepend"], "1 by 1\nold", 3),
    ],
)
def test_what_happens_to_a_sidecar_that_is_there(mmt, fake, how, content, count):
    Path("d/img1.caption").write_text("old")
    ended = mmt("caption", "d", "--sidecar", "--sidecar-ext", "caption", *how)
    assert Path("d/img1.caption").read_text() == content
    assert len(ended.out.splitlines()) == count
    assert ("1 skipped" in ended.err) == (count == 2)


def test_a_sidecar_that_cannot_be_written_fails_its_image_alone(mmt, fake):
    Path("d/img2.txt").mkdir()
    ended = mmt("caption", "d", "--sidecar", "--if-exists", "overwrite", "-f", "jsonl")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 3
    assert [record["error"] and record["error"]["kind"] for record in records] == [None, "unreadable", None]
    assert Path("d/img10.txt").read_text() == "10 by 1\n"


def test_a_sidecar_whose_record_was_lost_does_not_keep_its_image_from_the_file(mmt, fake):
    common = ("caption", "d", "--sidecar", "-f", "jsonl", "-o", "out", "--resume")
    mmt(*common)
    lines = Path("out").read_bytes().splitlines(keepends=True)
    Path("out").write_bytes(b"".join(lines[:-1]))
    assert mmt(*common).code == 0
    assert [json.loads(line)["path"] for line in Path("out").read_text().splitlines()] == NAMES


# Reports


def test_a_report_shows_images_captions_errors_and_settings(mmt, fake):
    ended = mmt("caption", "d", "gone.png", "--report", "page.html", "--prompt", "see <this>")
    assert ended.code == 3
    page = Path("page.html").read_text()
    assert page.count("<img") == 3
    assert "see &lt;this&gt; 10 by 1" in page
    assert "does not exist" in page
    assert ended.out.count("\n") == 3


# Streams


def test_one_image_on_a_terminal_comes_word_by_word(mmt, fake, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert mmt("caption", "d/img1.png", "--prefix", "<", "--suffix", ">").out == "<1 by 1>\n"
    assert fake.streamed == ["1", "by", "1"]
    fake.streamed.clear()
    assert mmt("caption", "d/img1.png", "--no-stream").out == "1 by 1\n"
    assert mmt("caption", "d").out == "".join(LINES)
    assert fake.streamed == []


def test_streams_elsewhere_are_asked_for(mmt, fake):
    assert mmt("caption", "d/img1.png").out == "1 by 1\n"
    assert fake.streamed == []
    assert mmt("caption", "d/img10.png", "gone.png", "--stream").out == "d/img10.png\t10 by 1\n"
    assert fake.streamed == ["10", "by", "1"]


# Dry runs


def test_a_dry_run_looks_at_each_image_and_loads_no_weights(mmt, fake):
    Path("d/cut.png").write_bytes(Path("d/img10.png").read_bytes()[:40])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("L", (30, 20)).save("d/turned.jpg", exif=exif)
    ended = mmt("caption", "d", "--dry-run")
    assert ended.code == 3
    assert fake.loads == []
    head, *lines = ended.out.splitlines()
    assert head.split() == ["readable", "mode", "size", "orientation", "tokens", "path"]
    assert lines[0].split()[:2] == ["no", "d/cut.png"]
    assert "(unreadable: cannot be read" in lines[0]
    assert lines[-1].split() == ["yes", "L", "30", "x", "20", "6", "81", "d/turned.jpg"]
    assert ended.err.startswith("mmt: 4 readable, 1 not; captioning them takes about ")


def test_a_dry_run_for_programs(mmt, fake):
    ended = mmt("caption", "d/img2.png", "gone.png", "--dry-run", "-f", "jsonl", "-q")
    good, bad = (json.loads(line) for line in ended.out.splitlines())
    assert good == {
        "path": "d/img2.png",
        "readable": True,
        "format": "PNG",
        "mode": "RGB",
        "width": 2,
        "height": 1,
        "orientation": 1,
        "tiles": 1,
        "tokens": 81,
        "error": None,
    }
    assert (bad["readable"], bad["tokens"]) == (False, None)
    assert bad["error"].startswith("missing: ")
    for kind in ("tsv", "csv"):
        assert len(mmt("caption", "d", "--dry-run", "-f", kind, "-q").out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["d", "--resume"], "--output missing"),
        (["d", "-0"], "--files-from missing"),
        (["--files-from", "gone"], "gone"),
        (["--files-from", "empty"], "no image found (in 'empty'"),
        (["-", "--files-from", "-"], "stdin is one thing alone"),
        (["-", "--sidecar"], "nothing can stand beside it"),
        (["s.tar", "--sidecar"], "nothing can stand beside it"),
        (["d", "--sidecar", "--sidecar-ext", ".png"], "--sidecar-ext"),
        (["d", "--stream", "-f", "jsonl"], "--format jsonl"),
        (["d", "--stream", "-o", "out"], "--output out"),
        (["d", "--stream", "--num-captions", "2"], "--num-captions 2"),
        (["d", "--shard", "1/1"], "bad value for --shard"),
        (["d", "-o", "missing/out"], "missing/out"),
        (["d", "-o", "d"], "d"),
        (["d", "--report", "missing/page.html"], "missing/page.html"),
        (["d", "-o", "/dev/null", "--resume"], "/dev/null"),
        (["d", "-o", "one", "--report", "one"], "two results cannot be one file"),
        (["d", "--num-captions", "0"], "num_captions"),
        (["d", "--workers", "0"], "--workers"),
    ],
)
def test_wrong_usage_is_one_line_before_the_model_is_loaded(mmt, fake, arguments, words):
    Path("empty").write_bytes(b"")
    ended = mmt("caption", *arguments)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1), ended.err
    assert words in ended.err
    assert fake.loads == []


def test_names_in_no_encoding_survive_an_output_file(mmt, fake):
    Path("d/img1.png").rename(os.fsdecode(b"\xff.png"))
    mmt("caption", "d", os.fsdecode(b"\xff.png"), "-o", "out")
    assert Path("out").read_bytes().splitlines()[-1] == b"\xff.png\t1 by 1"
