"""Weights in torch's own format are read without running what a pickle may ask for."""

import os
import pickle
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmt_cli.checkpoint import pickled
from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos
from mmt_cli.errors import ModelError


class _Trap:
    """A pickle that calls something when it is read."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def _state() -> dict[str, Tensor]:
    return {"b": torch.randn(2, 3), "a": torch.arange(4), "half": torch.randn(5).half(), "none": torch.zeros(0, 2)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_is_read_in_todays_format_and_in_that_of_before(tmp_path: Path, zipped: bool) -> None:
    state = _state()
    torch.save(state, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = map_pickle(tmp_path / "w.bin")
    assert list(found) == list(state)
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in state.items())
    infos = {info.name: info for info in pickle_infos(tmp_path / "w.bin", found)}
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in infos.items()} == {
        "b": ("F32", (2, 3), 24),
        "a": ("I64", (4,), 32),
        "half": ("F16", (5,), 10),
        "none": ("F32", (0, 2), 0),
    }
    assert {(info.path, info.start) for info in infos.values()} == {(tmp_path / "w.bin", None)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what is mapped")
def test_todays_format_is_mapped_and_not_read(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "w.bin")
    found = map_pickle(tmp_path / "w.bin")
    [line] = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / "w.bin") in line]
    start, end = (int(address, 16) for address in line.split()[0].split("-"))
    assert start <= found["a"].data_ptr() < end


def test_parameters_and_shared_tensors_are_tensors(tmp_path: Path) -> None:
    shared = torch.randn(3)
    torch.save({"a": nn.Parameter(shared), "b": shared, "c": shared[1:]}, tmp_path / "w.bin")
    found = map_pickle(tmp_path / "w.bin")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared)
    assert torch.equal(found["c"], shared[1:])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("trap", [_Trap(Path.touch, Path("sprung")), _Trap(os.mkdir, "sprung"), _Trap(eval, "1")])
def test_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: _Trap, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate((trap, {"a": torch.zeros(2), "b": trap}, {"a": torch.zeros(2), trap: 1})):
        path = tmp_path / f"{number}.bin"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelError, match="cannot be read") as caught:
            map_pickle(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(path))
        assert not (tmp_path / "sprung").exists()
    with (tmp_path / "bare.bin").open("wb") as file:
        pickle.dump(trap, file)
    with pytest.raises(ModelError, match="cannot be read"):
        map_pickle(tmp_path / "bare.bin")
    assert not (tmp_path / "sprung").exists()


def test_the_trap_would_spring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(_Trap(Path.touch, Path("sprung")), tmp_path / "w.bin")
    torch.load(tmp_path / "w.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        [torch.zeros(2)],
        torch.zeros(2),
        {"a": 3},
        {"a": torch.zeros(2), "b": [torch.zeros(2)]},
        {"model": {"a": torch.zeros(2)}},
        {1: torch.zeros(2)},
        {"a": torch.eye(2).to_sparse()},
    ],
    ids=range(9),
)
def test_what_is_no_map_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"no map of tensors.*w\.bin|cannot be read.*w\.bin") as caught:
        map_pickle(tmp_path / "w.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2.", struct.pack("<Q", 2) + b"{}", b"text"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.bin") as caught:
        map_pickle(tmp_path / "w.bin")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "w.bin")
    whole = (tmp_path / "w.bin").read_bytes()
    for end in (len(whole) - 1, len(whole) // 2, 10):
        (tmp_path / "w.bin").write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r"w\.bin"):
            map_pickle(tmp_path / "w.bin")


def test_a_dtype_that_no_model_holds_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b\n": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "w.bin")
    found = map_pickle(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"w\.bin, 'b\\n' is torch\.complex64"):
        list(pickle_infos(tmp_path / "w.bin", found))


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAX_TENSORS", 3)
    torch.save({str(i): torch.zeros(1) for i in range(4)}, tmp_path / "w.bin")
    with pytest.raises(ModelError, match="4, allowed 3"):
        map_pickle(tmp_path / "w.bin")
