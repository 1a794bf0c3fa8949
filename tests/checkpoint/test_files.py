"""Reading JSON strictly, and writing folders that are never half there."""

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmt_cli.checkpoint import files
from mmt_cli.checkpoint.files import json_bytes, write_folder
from mmt_cli.checkpoint.folder import Folder
from mmt_cli.errors import ModelError


def test_json_survives_a_round_trip(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, True], "ü": {"nested": "\u2028"}}
    (tmp_path / "a.json").write_bytes(json_bytes(data))
    assert Folder(tmp_path).read_json("a.json") == data
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert Folder(tmp_path).read_json("a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[1]", "list"),
        (b"null", "NoneType"),
        (b"7", "int"),
        ('{"a": 1}'.encode("utf-16"), "cannot be read"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'{"b": {"' + b"x" * 9999 + b'": 1, "' + b"x" * 9999 + b'": 2}}', "stands there twice"),
        (b'{"a": "\\ud800"}', "cannot be read"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "cannot be read"),
        (b"[" * 100_000 + b"]" * 100_000, "cannot be read"),
        (b" " * (files.MAX_JSON_BYTES + 1), "too large"),
    ],
    ids=range(12),
)
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Folder(tmp_path).read_json("a.json")
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


Writers = dict[str, Callable[[Path], object]]


def _writers(text: str, *names: str) -> Writers:
    return {name: partial(Path.write_text, data=text) for name in names}


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_holds_what_was_written(tmp_path: Path) -> None:
    write_folder(tmp_path / "new" / "model", _writers("one", "a", "b"))
    assert _content(tmp_path / "new" / "model") == {"a": "one", "b": "one"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    assert stat.S_IMODE((tmp_path / "new" / "model").stat().st_mode) == 0o755


def test_a_second_writing_replaces_its_files_and_keeps_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", _writers("one", "a", "b"))
    (tmp_path / "model" / "metrics").write_text("kept")
    write_folder(tmp_path / "model", _writers("two", "a", "c"))
    assert _content(tmp_path / "model") == {"a": "two", "b": "one", "c": "two", "metrics": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _fail(path: Path) -> None:
    path.write_text("half")
    raise OSError("the disk is full")


@pytest.mark.parametrize("existing", [True, False])
def test_a_writer_that_fails_leaves_everything_as_it_was(tmp_path: Path, existing: bool) -> None:
    if existing:
        write_folder(tmp_path / "model", _writers("one", "a", "b"))
    with pytest.raises(OSError, match="the disk is full"):
        write_folder(tmp_path / "model", {**_writers("two", "a"), "b": _fail, **_writers("two", "c")})
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if existing else [])
    if existing:
        assert _content(tmp_path / "model") == {"a": "one", "b": "one"}


def test_an_interruption_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    write_folder(tmp_path / "model", _writers("one", "a"))
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", {**_writers("two", "a"), "b": interrupt})
    assert _content(tmp_path / "model") == {"a": "one"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_all_is_on_the_disk_before_anything_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def synced(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        events.append(f"name {target.name}")
        return replace(self, target)

    def renamed(self: Path, target: Path) -> Path:
        events.append(f"name {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "rename", renamed)
    for _ in range(2):
        events.clear()
        write_folder(tmp_path / "model", _writers("one", "config", "weights"))
        first = min(index for index, event in enumerate(events) if event.startswith("name"))
        assert {"sync config", "sync weights"} <= set(events[:first])
        assert events[-1] == f"sync {tmp_path.name}"
    assert [event for event in events if event.startswith("name")] == ["name config", "name weights"]
