"""The hand-written reader of safetensors headers against the library, and against broken files."""

import json
import math
import os
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmt_cli.checkpoint import header
from mmt_cli.checkpoint.header import DTYPE_BYTES, read_header
from mmt_cli.errors import ModelError

TORTURE = Path(os.environ.get("MMT_TEST_DATA", ""), "torture", "safetensors_bad")
# Files that the library opens, and so do we: what is odd about them is in names, metadata or values alone.
ODD_BUT_READABLE = {"inf", "nan", "meta_markup", "name_1mb", "name_nul", "scalar", "trail_space"}
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


def _file(path: Path, head: Any, data: bytes = b"") -> Path:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def _entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


def test_every_dtype_that_torch_writes_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    dtypes += [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32]
    dtypes += [torch.int64, torch.uint64]
    tensors = {str(dtype): torch.zeros(3, 1, 2).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", "note": "ü"})
    found = read_header(tmp_path / "a.safetensors")
    assert found.metadata == {"format": "pt", "note": "ü"}
    assert list(found.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        info = found.tensors[name]
        assert (info.name, info.shape, info.parameters) == (name, tuple(tensor.shape), tensor.numel())
        assert info.nbytes == tensor.numel() * tensor.element_size()
    assert len(DTYPE_BYTES) == len(dtypes)


@pytest.mark.skipif(not TORTURE.is_dir(), reason="MMT_TEST_DATA names no folder with torture files")
@pytest.mark.parametrize("path", sorted(TORTURE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_broken_files_are_refused_quickly_and_in_little_memory(path: Path) -> None:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if path.stem in ODD_BUT_READABLE:
        assert read_header(path).tensors
    else:
        with pytest.raises(ModelError, match="safetensors") as caught:
            read_header(path)
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "no-json": (b"{", b"", "JSON"),
    "no-utf8": (b'{"\xff": 1}', b"", "JSON"),
    "byte-order-mark": (b"\xef\xbb\xbf{}", b"", "JSON"),
    "lone-surrogate": (b'{"\\ud800": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}', b"\0" * 16, "JSON"),
    "a-list": ([], b"", "object"),
    "null": (b"null", b"", "object"),
    "deep": (b'{"a":' * 100_000, b"", "JSON"),
    "key-twice": (b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "dtype": "F32"}}', b"\0" * 4, "twice"),
    "5000-digits": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}', b"", "JSON"),
    "entry-is-a-list": ({"a": []}, b"", "'a'"),
    "entry-without-shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4, "'a'"),
    "unknown-dtype": ({"a": _entry("F31")}, b"\0" * 16, "F31"),
    "dtype-is-a-list": ({"a": _entry(["F32"])}, b"\0" * 16, "dtype"),
    "shape-is-a-text": ({"a": _entry(shape="22")}, b"\0" * 16, "shape"),
    "shape-holds-a-float": ({"a": _entry(shape=(2.0, 2))}, b"\0" * 16, "shape"),
    "shape-holds-a-bool": ({"a": _entry(shape=(True, 4))}, b"\0" * 16, "shape"),
    "shape-is-negative": ({"a": _entry(shape=(-2, -2))}, b"\0" * 16, "shape"),
    "shape-of-rank-17": ({"a": _entry(shape=(1,) * 16 + (4,))}, b"\0" * 16, "shape"),
    "shape-overflows": ({"a": _entry(shape=(2**62, 2**62))}, b"\0" * 16, "shape"),
    "shape-overflows-but-for-a-zero": ({"a": _entry(shape=(2**62, 2**62, 0), offsets=[0, 0])}, b"", "shape"),
    "shape-needs-more": ({"a": _entry(shape=(2, 3))}, b"\0" * 16, "holds 16 bytes, its shape needs 24"),
    "offsets-are-three": ({"a": _entry(offsets=[0, 8, 16])}, b"\0" * 16, "data_offsets"),
    "offsets-are-null": ({"a": _entry(offsets=None)}, b"\0" * 16, "data_offsets"),
    "offsets-go-back": ({"a": _entry(offsets=[16, 0])}, b"\0" * 16, "-16 bytes"),
    "overlap": ({"a": _entry(), "b": _entry(offsets=[8, 24])}, b"\0" * 24, "overlaps at byte 8"),
    "hole": ({"a": _entry(), "b": _entry(offsets=[20, 36])}, b"\0" * 36, "hole at byte 20"),
    "hole-at-the-start": ({"a": _entry(offsets=[4, 20])}, b"\0" * 20, "hole at byte 4"),
    "trailing-bytes": ({"a": _entry()}, b"\0" * 17, "end at data byte 16, the file at 17"),
    "truncated": ({"a": _entry()}, b"\0" * 15, "end at data byte 16, the file at 15"),
    "metadata-holds-a-number": ({"__metadata__": {"a": 1}}, b"", "metadata"),
    "metadata-is-a-list": ({"__metadata__": []}, b"", "metadata"),
    "a-name-of-a-megabyte": ({"x" * 10**6: []}, b"", "'xxx"),
    "control-bytes": ({"\x1b[31m\n": []}, b"", r"'\x1b[31m\n'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_breakage_is_told(tmp_path: Path, kind: str) -> None:
    head, data, told = BROKEN[kind]
    with pytest.raises(ModelError, match="safetensors") as caught:
        read_header(_file(tmp_path / "a.safetensors", head, data))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "file at 0"),
        (b"\0", "file at 1"),
        (struct.pack("<Q", 2) + b"{", "header ends at byte 10, the file at 9"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", str(2**64 - 1)),
        (struct.pack("<Q", 16 * 2**20 + 1) + b"{}", str(16 * 2**20 + 1)),
    ],
)
def test_a_header_that_is_cut_or_too_large_is_told_with_both_sizes(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert told in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    writer = os.open(tmp_path / "pipe.safetensors", os.O_RDWR)
    os.write(writer, bytes(8))  # so that even a reader without the check goes on
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for path in tmp_path.iterdir():
        with pytest.raises(ModelError, match="no regular file") as caught:
            read_header(path)
        assert str(path) in str(caught.value)
    os.close(writer)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "dangling.safetensors").symlink_to("nothing")
    for name in ("dangling.safetensors", "none.safetensors", "x" * 300):
        with pytest.raises(ModelError) as caught:
            read_header(tmp_path / name)
        assert name in str(caught.value)


def test_a_sparse_file_of_a_tebibyte_is_refused_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.safetensors", {"a": _entry()}, b"\0" * 16)
    os.truncate(path, 2**40)
    with pytest.raises(ModelError, match="the file at"):
        read_header(path)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MAX_TENSORS", 3)
    tensors = {str(index): torch.zeros(1) for index in range(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="4 tensors, allowed 3"):
        read_header(tmp_path / "a.safetensors")


def _valid() -> tuple[dict[str, Any], bytes]:
    head = {
        "__metadata__": {"format": "pt"},
        "a": _entry(offsets=[0, 16]),
        "b": _entry("F16", (3,), [16, 22]),
        "c": _entry("U8", (), [22, 23]),
        "d": _entry("I64", (0, 7), [23, 23]),
    }
    return head, bytes(range(23))


numbers = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3) | st.sampled_from(["F32", "F16", "U8", "BF16", "C64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def _compare(path: Path) -> None:
    """Refused by us, or read by the library with the same result."""
    try:
        found = read_header(path)
    except ModelError as error:
        assert "\n" not in str(error)
        return
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == list(found.tensors)
        for name, info in found.tensors.items():
            assert tuple(file.get_slice(name).get_shape()) == info.shape
            tensor = file.get_tensor(name)
            assert tensor.numel() * tensor.element_size() == info.nbytes


@one_folder
@given(data=st.data())
def test_a_header_changed_anywhere_is_refused_or_reads_as_the_library_reads_it(
    tmp_path: Path, data: st.DataObject
) -> None:
    head, body = _valid()
    for _ in range(data.draw(st.integers(1, 2))):
        node: Any = head
        while True:
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
                break
            node = node[key]
        node[key] = data.draw(values)
    body = body[: data.draw(st.sampled_from([23, 23, 23, 22, 16]))] + b"\0" * data.draw(st.sampled_from([0, 0, 1]))
    _compare(_file(tmp_path / "a.safetensors", head, body))


@one_folder
@given(data=st.data())
def test_bytes_changed_anywhere_are_refused_or_read_as_the_library_reads_them(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = _file(tmp_path / "a.safetensors", *_valid())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        count = data.draw(st.integers(0, 2))
        content[place : place + count] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b" ", b"0", b"-", b"\n", b","])
        )
    path.write_bytes(content)
    _compare(path)


def test_the_untouched_file_is_read(tmp_path: Path) -> None:
    """So that the two tests above start from something that reads."""
    found = read_header(_file(tmp_path / "a.safetensors", *_valid()))
    assert {name: math.prod(info.shape) for name, info in found.tensors.items()} == {"a": 4, "b": 3, "c": 1, "d": 0}
    _compare(tmp_path / "a.safetensors")
    with pytest.raises(SafetensorError), safe_open(_file(tmp_path / "b.safetensors", {"a": 1}), framework="pt"):
        pass


@pytest.mark.parametrize("filler", [b"[],", b"0,", b"[" * 16], ids=["lists", "numbers", "depth"])
def test_a_full_header_of_rubbish_is_refused_in_time(tmp_path: Path, filler: bytes) -> None:
    raw = b'{"a":[' + filler * (header.MAX_HEADER_BYTES // len(filler) - 1) + b"0]}"
    started = time.perf_counter()
    with pytest.raises(ModelError):
        read_header(_file(tmp_path / "a.safetensors", raw))
    assert time.perf_counter() - started < 10


def test_as_many_tensors_as_are_allowed_are_read(tmp_path: Path) -> None:
    name, count = "model.layers.{}.weight", 5_000
    head = {name.format(index): _entry("U8", (1,), [index, index + 1]) for index in range(count)}
    assert len(read_header(_file(tmp_path / "a.safetensors", head, bytes(count))).tensors) == count
    assert header.MAX_NODES > 3 * header.MAX_TENSORS + 2
