"""What an earlier run left, cut off anywhere, and how it was made."""

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.captioning.output import OutputFile
from mmt_cli.captioning.resume import DoneItems, check_settings, read_settings, scan, write_settings
from mmt_cli.captioning.writers import Layout, Record
from mmt_cli.errors import ImageError, UsageError
from mmt_cli.inputs.encoding import to_bytes

LAYOUTS = [
    Layout(kind=kind, captions_per_item=count, grounded=count > 1)
    for kind in ("jsonl", "tsv", "csv", "text")
    for count in (1, 3)
]
# Names and captions with all that a layout has to escape; an item twice, a failed one twice in a row.
ITEMS = [
    "a.jpg",
    "a.jpg",
    'q"x,\r\n"".jpg',
    "gone",
    "gone",
    "\\t\\\\\t\n.jpg",
    "a.jpg",
    "\udcff.jpg",
    "gone",
    "é/\u2028",
]
CAPTION = 'one "two",\r\nthree\tfour\\ é'


def records_of(path: str, layout: Layout) -> list[Record]:
    blank = {"path": path, "ms": 1.0, "model": "mini@0123456789ab"}
    if path == "gone":
        return [Record(**blank, error=ImageError("missing", 'is "not" there,\nlook'))]
    # The second caption is an empty one, as that of a failed image.
    captions = [CAPTION, "", CAPTION][: layout.captions_per_item]
    return [
        Record(**blank, caption=caption, tokens=(1, 2), logprob=-1.5, finish_reason="stop", rank=rank)
        for rank, caption in enumerate(captions, 1)
    ]


def text_of(path: str, layout: Layout) -> str:
    return "".join(map(layout.lines, records_of(path, layout)))


def run(path: Path, layout: Layout, items: list[str], *, resume: bool = True, batch: int = 3) -> list[str]:
    """Write what is not there yet; return which items that were."""
    did = []
    with OutputFile(str(path), layout=layout, resume=resume) as output:
        output.start({"model": "mini"})
        for number, item in enumerate(items, 1):
            if not output.take(item):
                output.write(text_of(item, layout))
                did.append(item)
            if number % batch == 0:
                output.commit()
    return did


def scanned(data: bytes, layout: Layout) -> tuple[DoneItems, int]:
    return scan(io.BytesIO(data), "out", layout)


def whole(layout: Layout, items: list[str] = ITEMS) -> bytes:
    return to_bytes(layout.header() + "".join(text_of(item, layout) for item in items))


def ids(layout: Layout) -> str:
    return f"{layout.kind}-{layout.captions_per_item}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_a_whole_file_is_done_to_its_end(layout):
    done, end = scanned(whole(layout), layout)
    assert end == len(whole(layout))
    shown = [item for item in ITEMS if layout.kind != "text" or item != "gone"]
    assert all(done.take(item) for item in shown)
    assert not any(done.take(item) for item in {*ITEMS, "other", ""})


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_a_file_cut_at_any_byte_ends_with_its_last_whole_item(layout):
    data = whole(layout)
    ends = [len(whole(layout, ITEMS[:count])) for count in range(len(ITEMS) + 1)]
    for cut in range(len(data)):
        done, end = scanned(data[:cut], layout)
        assert end == max((e for e in ends if e <= cut), default=0), data[:cut]
        missing = [item for item in ITEMS if not done.take(item)]
        again = missing if layout.kind != "text" else [item for item in missing if item != "gone"]
        kept = data[:end] or to_bytes(layout.header())
        assert kept + to_bytes("".join(text_of(item, layout) for item in again)) == data


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_a_run_that_goes_on_from_any_cut_makes_the_same_file(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run(tmp_path / "whole", layout, ITEMS, resume=False)
    data = (tmp_path / "whole").read_bytes()
    assert data == whole(layout)
    path = tmp_path / "cut"
    for cut in range(0, len(data) + 1, 1 if layout == Layout(kind="tsv") else 13):
        (tmp_path / "cut.mmt").write_bytes((tmp_path / "whole.mmt").read_bytes())
        path.write_bytes(data[:cut])
        run(path, layout, ITEMS)
        assert path.read_bytes() == data, cut


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_what_never_reached_the_disk_in_a_power_cut_is_dropped_with_all_behind_it(layout):
    kept, data = whole(layout, ITEMS[:2]), whole(layout)
    hole = data[: len(kept) + 2] + b"\0" * 30 + data[len(kept) + 32 :]
    assert scanned(hole, layout)[1] == len(kept)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.captions_per_item == 1], ids=ids)
def test_something_else_in_the_middle_is_refused_by_its_place(layout):
    other = b"what\r\n"
    start, rest = whole(layout, ITEMS[:1]), whole(layout, ["b.jpg"])
    with pytest.raises(UsageError, match=rf"^out has .*\(record {3 if layout.kind == 'csv' else 2}\); .*--resume"):
        scanned(start + other + rest, layout)


def test_a_csv_file_whose_line_ends_were_changed_loses_nothing():
    layout = Layout(kind="csv")
    with pytest.raises(UsageError, match="record 1"):
        scanned(whole(layout).replace(b"\r\n", b"\n"), layout)


@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv"])
def test_captions_of_an_item_that_were_torn_apart_are_refused(kind):
    layout = Layout(kind=kind, captions_per_item=3)
    first = layout.lines(records_of("gone.jpg", layout)[0])
    failed = layout.lines(Record(path="gone.jpg", ms=1.0, model="m", error=ImageError("missing", "is not there")))
    for other in (text_of("b.jpg", layout), failed if kind != "tsv" else first.replace("gone", "other")):
        with pytest.raises(UsageError, match="something else than a record"):
            scanned(to_bytes(layout.header() + first + other + text_of("c.jpg", layout)), layout)


@pytest.mark.parametrize(
    "line",
    [b"[]\n", b"{}\n", b'{"path": 1}\n', b"null\n", b"\n", b"[" * 100_000 + b"\n", b"\xff\xfe{\n"],
    ids=range(7),
)
def test_json_that_is_no_record_is_none(line):
    layout = Layout(kind="jsonl")
    assert scanned(whole(layout, ["a"]) + line, layout)[1] == len(whole(layout, ["a"]))
    with pytest.raises(UsageError):
        scanned(line + whole(layout), layout)


@pytest.mark.parametrize("count", [1, 2])
def test_a_caption_alone_is_done_when_it_ends(count):
    layout = Layout(kind="text", single=True, captions_per_item=count)
    data = b"a dog\n" * count
    for cut in range(len(data)):
        done, end = scanned(data[:cut], layout)
        assert (end, done.take("")) == (0, False)
    done, end = scanned(data, layout)
    assert (end, done.take(""), done.take("")) == (len(data), True, False)


@given(st.lists(st.sampled_from(["a", "b", "\udcff", "é"]), max_size=12))
def test_items_are_counted_off_as_often_as_they_were_counted(paths):
    done = DoneItems()
    for path in paths:
        done.add(os.fsencode(path))
    for path in random.Random(0).sample(paths, len(paths)):
        assert done.take(path)
    assert not any(done.take(path) for path in ["a", "b", "\udcff", "é"])


def test_half_a_character_in_a_name_is_found_again():
    for layout in LAYOUTS:
        done, _ = scanned(whole(layout, ["\ud83d.jpg"]), layout)
        assert done.take("\ud83d.jpg"), layout


def test_settings_are_read_back_and_may_hold_anything(tmp_path):
    output = str(tmp_path / "out")
    settings = {"model": "mini@0", "prompt": "\udcff\u2028é", "top_p": float("inf"), "sizes": (1, 2), "none": None}
    write_settings(output, settings)
    assert Path(output + ".mmt").read_bytes().isascii()
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mmt"]
    check_settings(output, read_settings(output), settings)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1, "b": "x", "c": 2}, {"a": 1, "b": "y", "c": 3}, "another b ('x' then, 'y' now)"),
        ({"a": 1, "old": True}, {"a": 1}, "another old (True then, None now)"),
        ({"a": 1}, {"a": 1, "new": [1]}, "another new (None then, [1] now)"),
        ({"b": 1}, {"b": True}, "another b (1 then, True now)"),
        ({"b": "x" * 500}, {"b": "\n" * 500}, "another b ('xxx"),
    ],
    ids=range(5),
)
def test_the_first_other_setting_is_named_with_both_values(before, now, told):
    with pytest.raises(UsageError) as caught:
        check_settings("out.tsv", before, now)
    assert str(caught.value).startswith("out.tsv was made with ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_settings_that_are_not_given_are_none_and_no_number_is_itself():
    check_settings("out", {"a": None, "n": float("nan")}, {"b": None, "n": float("nan")})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is damaged"),
        (b'{"format_version": 1, "sett', "it is damaged"),
        (b"[1]", "it is damaged"),
        (b'{"format_version": 1, "settings": []}', "it is damaged"),
        (b'{"format_version": 2, "settings": {}}', "version 2, expected 1"),
        (b"[" * 100_000, "it is damaged"),
        (b" " * (2 << 20), "it is damaged"),
    ],
    ids=range(7),
)
def test_damaged_settings_are_refused(tmp_path, content, told):
    (tmp_path / "out.mmt").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        read_settings(str(tmp_path / "out"))


def test_settings_that_are_not_there_or_no_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"out\.mmt: No such file"):
        read_settings(str(tmp_path / "out"))
    os.mkfifo(tmp_path / "pipe.mmt")
    (tmp_path / "folder.mmt").mkdir()
    (tmp_path / "device.mmt").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device"):
        with pytest.raises(UsageError, match=f"how .*{name} was made"):
            read_settings(str(tmp_path / name))
