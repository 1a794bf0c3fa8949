"""Nothing outside a checkpoint folder is opened, and which weights it holds is decided one way."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmt_cli.checkpoint import folder as module
from mmt_cli.checkpoint.folder import Folder, preferred_weights, read_index, weight_files
from mmt_cli.errors import ModelError

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _index(folder: Path, weight_map: Any, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def _one_line(caught: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_a_file_in_the_folder_or_below_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ü.bin").write_bytes(b"12")
    folder = Folder(tmp_path)
    assert folder.file("sub/ü.bin") == tmp_path / "sub" / "ü.bin"
    assert folder.read_bytes("sub/ü.bin", 2) == b"12"
    assert folder.file("none.bin") is None
    assert folder.file("sub/ü.bin/none") is None
    assert folder.read_bytes("none.bin", 2) is None
    assert folder.read_json("none.json") is None
    assert Folder(tmp_path / "none").file("a") is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "sub/../../secret",
        "/etc/passwd",
        "sub\\a",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "./a",
        "a//b",
        "a/",
        "\ud800",
        "\u202ea",
    ],
    ids=range(15),
)
def test_a_name_that_may_lead_out_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "inner" / "sub").mkdir(parents=True)
    for read in (Folder.file, Folder.read_json):
        with pytest.raises(ModelError, match="out of its folder") as caught:
            read(Folder(tmp_path / "inner"), name)
        _one_line(caught)


def test_a_link_may_lead_into_the_folder_but_not_out_of_it(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "inner-secret").write_text("{}")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "a").write_text("{}")
    (inner / "file").write_text("{}")
    (inner / "good").symlink_to("file")
    (inner / "bad").symlink_to(tmp_path / "inner-secret")
    (inner / "twice").symlink_to("bad")
    (inner / "door").symlink_to(tmp_path / "outer")
    folder = Folder(inner)
    assert folder.file("good") == inner / "good"
    for name in ("bad", "twice", "door/a"):
        with pytest.raises(ModelError, match="leads out of the folder"):
            folder.file(name)


def test_a_folder_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("real")
    assert Folder(tmp_path / "link").read_json("a.json") == {"a": 1}


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    for name, told in (
        ("pipe", "no regular file"),
        ("sub", "no regular file"),
        ("loop", "cannot be reached"),
        ("gone", "leads to no file"),
        ("x" * 300, "cannot be reached"),
    ):
        with pytest.raises(ModelError, match=told) as caught:
            Folder(tmp_path).read_bytes(name, 10)
        _one_line(caught)


def _snapshot(cache: Path) -> Path:
    """Build a hub's cache of one repository with two blobs, one of them shared, as huggingface_hub lays it out."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    for path in (snapshot, repository / "blobs", cache / "blobs" / "cc"):
        path.mkdir(parents=True)
    (repository / "blobs" / "plain").write_text("{}")
    (cache / "blobs" / "cc" / "shared").write_text("{}")
    (repository / "blobs" / "big").symlink_to("../../blobs/cc/shared")
    (snapshot / "plain.json").symlink_to("../../blobs/plain")
    (snapshot / "big.json").symlink_to("../../blobs/big")
    return snapshot


def test_a_hub_snapshot_may_lead_into_its_cache_but_not_further(tmp_path: Path) -> None:
    snapshot = _snapshot(tmp_path / "hub")
    assert Folder(snapshot).read_json("plain.json") == {}
    assert Folder(snapshot).read_json("big.json") == {}
    (tmp_path / "hub" / "token").write_text("{}")
    (snapshot / "token.json").symlink_to(tmp_path / "hub" / "token")
    (snapshot.parent.parent / "blobs" / "bad").symlink_to(tmp_path / "hub" / "token")
    (snapshot / "bad.json").symlink_to("../../blobs/bad")
    for name in ("token.json", "bad.json"):
        with pytest.raises(ModelError, match="leads out of the folder"):
            Folder(snapshot).file(name)


def test_blobs_beside_a_folder_of_another_layout_stay_closed(tmp_path: Path) -> None:
    snapshot = _snapshot(tmp_path / "hub")
    (tmp_path / "hub" / "models--org--name").rename(tmp_path / "hub" / "name")
    with pytest.raises(ModelError, match="leads out of the folder"):
        Folder(tmp_path / "hub" / "name" / "snapshots" / snapshot.name).file("plain.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        (b"[1]", "found list"),
        ('{"a": 1}'.encode("utf-16"), "cannot be read"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'{"a": "\\ud800"}', "cannot be read"),
        (b"[" * 100_000 + b"]" * 100_000, "cannot be read"),
        (b" " * 1024 * 1024 + b"{}", "too large"),
    ],
    ids=range(7),
)
def test_json_is_read_as_strictly_as_everywhere(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelError, match=told) as caught:
        Folder(tmp_path).read_json("a.json")
    assert str(tmp_path / "a.json") in _one_line(caught)


def test_a_byte_order_mark_is_skipped_and_a_larger_bound_holds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}" + b" " * 1024 * 1024)
    assert Folder(tmp_path).read_json("a.json", 2 * 1024 * 1024) == {}


def test_a_file_of_too_many_lists_is_refused_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('{"a": [[], [], []]}')
    monkeypatch.setattr(module, "MAX_NODES", 4)
    with pytest.raises(ModelError, match="5 nodes, allowed 4"):
        Folder(tmp_path).read_json("a.json")


def test_safetensors_come_before_pickles_and_one_file_before_shards(tmp_path: Path) -> None:
    shard = "pytorch_model-00001-of-00001.bin"
    with pytest.raises(ModelError, match=r"model\.safetensors, .*pytorch_model\.bin\.index\.json"):
        weight_files(Folder(tmp_path))
    (tmp_path / shard).touch()
    _index(tmp_path, {"a": shard}, "pytorch_model.bin.index.json")
    found = weight_files(Folder(tmp_path))
    assert (found.format, found.files) == ("pytorch", {tmp_path / shard: frozenset({"a"})})
    (tmp_path / "pytorch_model.bin").touch()
    found = weight_files(Folder(tmp_path))
    assert (found.format, found.files) == ("pytorch", {tmp_path / "pytorch_model.bin": None})
    (tmp_path / SHARDS[0]).touch()
    _index(tmp_path, {"a": SHARDS[0]})
    found = weight_files(Folder(tmp_path))
    assert (found.format, found.files) == ("safetensors", {tmp_path / SHARDS[0]: frozenset({"a"})})
    (tmp_path / "model.safetensors").touch()
    found = weight_files(Folder(tmp_path))
    assert (found.format, found.files) == ("safetensors", {tmp_path / "model.safetensors": None})
    found.check(tmp_path / "model.safetensors", ["anything"])


def test_the_hubs_names_are_chosen_as_a_folders_are() -> None:
    assert preferred_weights(["a.py", "pytorch_model.bin", INDEX]) == INDEX
    assert preferred_weights(["model.fp16.safetensors", "flax_model.msgpack"]) is None


def test_a_shard_must_hold_the_tensors_its_index_names_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    below = f"sub/{SHARDS[1]}"
    (tmp_path / SHARDS[0]).touch()
    (tmp_path / below).touch()
    _index(tmp_path, {"c": below, "a": SHARDS[0], "b": SHARDS[0]})
    found = weight_files(Folder(tmp_path))
    assert list(found.files) == [tmp_path / SHARDS[0], tmp_path / below]
    found.check(tmp_path / SHARDS[0], ["b", "a"])
    found.check(tmp_path / below, {"c": 1})
    with pytest.raises(ModelError, match=r"'b' missing\)"):
        found.check(tmp_path / SHARDS[0], ["a"])
    with pytest.raises(ModelError, match=r"'d', 'e', 'f' and 1 more not indexed\)"):
        found.check(tmp_path / below, ["c", "d", "e", "f", "g"])
    with pytest.raises(ModelError, match="'c' missing; 'x' not indexed"):
        found.check(tmp_path / below, ["x"])


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"a": "../model-1.safetensors"}, "out of its folder"),
        ({"a": "/dev/zero.safetensors"}, "out of its folder"),
        ({"a": "sub\\a.safetensors"}, "out of its folder"),
        ({"a": "a\0.safetensors"}, "out of its folder"),
        ({"a": "link.safetensors"}, "leads out"),
        ({"a": "pipe.safetensors"}, "no regular file"),
        ({"a": SHARDS[0], "b": SHARDS[1]}, f"a shard is missing .*{SHARDS[1]}"),
        ({"a": "model.bin"}, "names no .safetensors file"),
        ({"a": ".env"}, "names no .safetensors file"),
        ({"a": 1}, "names no .safetensors file"),
        ({"a": [SHARDS[0]]}, "names no .safetensors file"),
        ({}, "no index of weights"),
        ([], "no index of weights"),
        (None, "no index of weights"),
    ],
    ids=range(14),
)
def test_an_index_that_leads_astray_is_refused(tmp_path: Path, weight_map: Any, told: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "model-1.safetensors").touch()
    (inner / "link.safetensors").symlink_to(tmp_path / "model-1.safetensors")
    os.mkfifo(inner / "pipe.safetensors")
    (inner / SHARDS[0]).touch()
    _index(inner, weight_map)
    with pytest.raises(ModelError, match=told) as caught:
        weight_files(Folder(inner))
    _one_line(caught)


def test_an_index_has_its_own_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _index(tmp_path, {f"{'x' * 200}.{i}": SHARDS[0] for i in range(6_000)})
    assert (tmp_path / INDEX).stat().st_size > 1024 * 1024
    assert len(read_index(Folder(tmp_path), INDEX)[SHARDS[0]]) == 6_000
    monkeypatch.setattr(module, "MAX_TENSORS", 5_999)
    with pytest.raises(ModelError, match="6000 tensors, allowed 5999"):
        read_index(Folder(tmp_path), INDEX)
    monkeypatch.setattr(module, "MAX_INDEX_BYTES", 1024 * 1024)
    with pytest.raises(ModelError, match="too large"):
        read_index(Folder(tmp_path), INDEX)
    with pytest.raises(ModelError, match="no index of weights"):
        read_index(Folder(tmp_path), "other.safetensors.index.json")
