"""Lists of what to caption: names of any bytes, prompts, prefixes of a pipe, and what is refused."""

import io
import json
import os
import sys
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmt_cli.captioning import lists
from mmt_cli.captioning.items import Item
from mmt_cli.captioning.lists import find_listed, open_list, read_list
from mmt_cli.errors import ImageError, UsageError

BYTES_OF_NAMES = st.sampled_from([*b"a{\r\n -\xef\xbb\xbf\xff"]) | st.integers(1, 255)
NAMES = st.lists(st.lists(BYTES_OF_NAMES, min_size=1, max_size=8).map(bytes), max_size=8)


class Pipe(io.BytesIO):
    """Bytes that come in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        assert size > 0
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]


def entries(data: bytes, *, null: bool = False) -> list[Item]:
    return list(read_list(io.BytesIO(data), null=null, name="list"))


def paths(data: bytes, *, null: bool = False) -> list[bytes]:
    return [os.fsencode(item.path) for item in entries(data, null=null)]


def listed(data: bytes, *, recursive: bool = False, excluded=()) -> list[tuple[str, str | None]]:
    file = io.BytesIO(data)
    found = find_listed(file, null=False, name="list", recursive=recursive, excluded=excluded)
    return [(item.path, item.prompt) for item in found]


@given(NAMES, st.booleans())
def test_names_of_any_bytes_come_back_from_a_null_list(names, ended):
    data = b"\0".join(names) + b"\0" * ended
    assert paths(data, null=True) == names


@given(NAMES, st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
@example([b"\xef\xbb\xbfa"], True, b"\n")
def test_names_of_any_bytes_without_newlines_come_back_from_lines(names, ended, end):
    # A return at the end is taken for one of Windows's, a byte order mark at the start for one.
    names = [name for name in names if b"\n" not in name and not name.endswith(b"\r")]
    data = b"\xef\xbb\xbf" + end.join(names) + end * ended
    assert paths(data) == names


@given(st.lists(st.sampled_from([b"a", b"{", b'{"path": "x", "prompt": "y"}', b"\n", b"\r", b"\0", b"\xef\xbb\xbf"])))
def test_it_does_not_matter_in_what_pieces_a_list_comes(pieces):
    for null in (False, True):
        split = [(item.path, item.prompt) for item in read_list(Pipe(*filter(None, pieces)), null=null, name="list")]
        assert split == [(item.path, item.prompt) for item in entries(b"".join(pieces), null=null)]


def test_a_list_longer_than_one_piece_is_read_whole(monkeypatch):
    names = [b"%d.jpg" % number for number in range(50)]
    for chunk in (1, 2, 3, 7):
        monkeypatch.setattr(lists, "_CHUNK", chunk)
        assert paths(b"\n".join(names)) == paths(b"\0".join(names), null=True) == names


def test_entries_are_handed_over_before_the_next_ones_come_in():
    pipe = Pipe(b"a\nb", b"c\n", b"never asked for")
    reading = read_list(pipe, null=False, name="list")
    assert next(reading).path == "a"
    assert next(reading).path == "bc"
    assert pipe.pieces == [b"never asked for"]


def test_empty_lines_are_skipped_and_spaces_belong_to_names():
    assert paths(b"\n\n a \n\r\n\t\nb\r\r\n\n") == [b" a ", b"\t", b"b\r"]
    assert paths(b"\0\0a\n\0\r\0", null=True) == [b"a\n", b"\r"]
    assert paths(b"") == paths(b"", null=True) == []


def test_a_byte_order_mark_is_dropped_at_the_very_start_of_lines_alone():
    mark = b"\xef\xbb\xbf"
    assert paths(mark + b"a\n" + mark + b"b") == [b"a", mark + b"b"]
    assert paths(mark) == []
    assert paths(mark + b"a", null=True) == [mark + b"a"]
    assert [item.path for item in entries(mark + b'{"path": "a"}')] == ["a"]


def test_json_lines_give_a_prompt_each():
    data = (
        b'{"path": "a.jpg", "prompt": "A"}\n{"prompt": null, "path": "b.jpg"}\r\n{"path": "c.jpg", "x": [1]}\nd.jpg\n'
    )
    data += '{"path": "é.jpg", "prompt": ""}'.encode()
    assert [(item.path, item.prompt) for item in entries(data)] == [
        ("a.jpg", "A"),
        ("b.jpg", None),
        ("c.jpg", None),
        ("d.jpg", None),
        ("é.jpg", ""),
    ]


@given(NAMES)
def test_names_of_any_bytes_come_back_from_json_as_records_write_them(names):
    lines = [json.dumps({"path": os.fsdecode(name)}).encode() for name in names]
    assert paths(b"\n".join(lines)) == names


def test_bytes_of_no_encoding_may_stand_in_json():
    assert paths(b'{"path": "\xff.jpg"}') == [b"\xff.jpg"]


NO_ENTRIES = (
    b"{a}.jpg",
    b'{"path": 1}',
    b'{"path": null}',
    b"{}",
    b'{"path": "a"',
    b'{"path": "a"} x',
    b' {"path": "a"}',
    b'["a"]',
    b'"a"',
    b'{"path":' * 20_000,
    b'{"path": "a", "n": ' + b"1" * 5000 + b"}",
)


@pytest.mark.parametrize("line", NO_ENTRIES, ids=range(len(NO_ENTRIES)))
def test_any_other_line_is_a_name_to_the_letter(line):
    assert paths(line) == [line]
    assert paths(line, null=True) == [line]


def test_json_is_a_name_in_a_null_list():
    line = b'{"path": "a.jpg", "prompt": "A"}'
    assert paths(line, null=True) == [line]


@pytest.mark.parametrize(
    "prompt", [b"1", b"[]", b"true", b'{"a": 1}', rb'"\ud800"', b'"\xff"', b"1" * 4000], ids=range(7)
)
def test_a_prompt_that_is_no_text_fails_its_image_alone(prompt):
    first, second = entries(b'{"path": "a.jpg", "prompt": ' + prompt + b"}\nb.jpg")
    assert first.path == "a.jpg"
    with pytest.raises(ImageError) as caught:
        first.open()
    assert caught.value.kind == "unsupported"
    assert str(caught.value).startswith("a.jpg has a prompt that is no text")
    assert len(str(caught.value)) < 200
    assert second.open() == "b.jpg"


def test_a_failing_entry_stays_one_item_whatever_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    assert listed(b'{"path": "d", "prompt": 1}') == [("d", None)]


def test_folders_and_archives_are_expanded_and_all_their_images_get_the_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/10.jpg", "d/9.jpg", "d/e/x.png", "-"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    with tarfile.open("s.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("k.jpg"))
    status = Path("d/10.jpg").stat()
    excluded = {(status.st_dev, status.st_ino)}
    data = b'd\n{"path": "s.tar", "prompt": "A"}\n{"path": "d/e", "prompt": "B"}\ngone\n'
    rest = [("s.tar/k.jpg", "A"), ("d/e/x.png", "B"), ("gone", None)]
    assert listed(data) == [("d/9.jpg", None), ("d/10.jpg", None), *rest]
    assert listed(data, recursive=True, excluded=excluded) == [("d/9.jpg", None), ("d/e/x.png", None), *rest]


def test_a_dash_in_a_list_is_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    (item,) = find_listed(io.BytesIO(b"-\n"), null=False, name="list", recursive=False)
    assert (item.path, item.file, item.open()) == ("-", "-", "-")


@pytest.mark.parametrize("path", [r"a\u0000b", r"\ud800", "", "n" * 5000])
def test_names_that_no_file_can_have_are_items_whose_reading_fails(path):
    ((found, _),) = listed(b'{"path": "%s"}' % path.encode())
    assert found == json.loads(f'"{path}"')


def test_lists_of_any_length_take_no_memory():
    pipe = Pipe(*[b"/a/b/c.jpg\n" * 1000] * 20)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_list(pipe, null=False, name="list"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 300_000


@pytest.mark.parametrize("null", [False, True])
def test_an_entry_without_an_end_is_refused_before_it_fills_memory(null):
    separator = b"\0" if null else b"\n"
    most = b"x" * lists.MAX_ENTRY_BYTES
    assert paths(b"a" + separator + most, null=null) == [b"a", most]
    pipe = Pipe(b"a" + separator, *[most[:100_000]] * 1000)
    reading = read_list(pipe, null=null, name="names.txt")
    assert next(reading).path == "a"
    with pytest.raises(UsageError) as caught:
        next(reading)
    assert "'names.txt'" in str(caught.value)
    assert str(lists.MAX_ENTRY_BYTES) in str(caught.value)
    assert len(pipe.pieces) > 980
    with pytest.raises(UsageError):
        paths(most + b"x" + separator, null=null)


def test_a_list_is_opened_by_its_name(tmp_path):
    (tmp_path / "names").write_bytes(b"a\n")
    with open_list(str(tmp_path / "names")) as file:
        assert file.read() == b"a\n"


def test_a_pipe_is_a_list_too(tmp_path):
    read_end, write_end = os.pipe()
    os.write(write_end, b"a\nb\n")
    os.close(write_end)
    with open_list(f"/dev/fd/{read_end}") as file:
        assert [item.path for item in read_list(file, null=False, name="pipe")] == ["a", "b"]
    os.close(read_end)


def test_a_dash_opens_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n")))
    assert [os.fsencode(item.path) for item in read_list(open_list("-"), null=False, name="-")] == [b"\xff"]


@pytest.mark.parametrize(("name", "reason"), [("gone", "No such file"), (".", "s a directory"), ("x/y", "")])
def test_a_list_that_cannot_be_opened_is_wrong_usage(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x").touch()
    with pytest.raises(UsageError) as caught:
        open_list(name)
    assert f"'{name}'" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("stdin", "reason"), [(None, "closed"), (SimpleNamespace(isatty=lambda: True), "a terminal")])
def test_a_stdin_that_can_hold_no_list_is_wrong_usage(stdin, reason, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UsageError) as caught:
        open_list("-")
    assert reason in str(caught.value)
    assert "--files-from" in str(caught.value)


def test_a_list_that_breaks_off_is_wrong_usage():
    class Broken(Pipe):
        def read1(self, size: int = -1, /) -> bytes:
            if self.pieces:
                return super().read1(size)
            raise OSError(5, "Input/output error")

    reading = read_list(Broken(b"a\nb"), null=False, name="names.txt")
    assert next(reading).path == "a"
    with pytest.raises(UsageError) as caught:
        next(reading)
    assert "'names.txt': Input/output error" in str(caught.value)
