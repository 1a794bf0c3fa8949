"""Tensors of weight files become the model's: as views where they can, else in little more memory than they take."""

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmt_cli.checkpoint import tensors as module
from mmt_cli.checkpoint.header import TensorInfo, read_header
from mmt_cli.checkpoint.keymap import Origin
from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos
from mmt_cli.checkpoint.tensors import PickledFiles, SafetensorsFiles, Tensors, take
from mmt_cli.errors import ModelError

Opened = tuple[AbstractContextManager[Tensors], dict[str, TensorInfo]]


def _safetensors(folder: Path, state: dict[str, Tensor]) -> Opened:
    """Each tensor in a file of its own, behind another one: none begins where its file's data do."""
    infos: dict[str, TensorInfo] = {}
    for index, (name, tensor) in enumerate(state.items()):
        path = folder / f"{index}.safetensors"
        save_file({"0": torch.zeros(3), name: tensor.contiguous()}, path)
        infos |= {name: read_header(path).tensors[name]}
    return SafetensorsFiles(infos), infos


def _pickled(folder: Path, state: dict[str, Tensor]) -> Opened:
    torch.save(state, folder / "weights.bin")
    found = map_pickle(folder / "weights.bin")
    infos = {info.name: info for info in pickle_infos(folder / "weights.bin", found)}
    return PickledFiles(found), infos


@pytest.fixture(params=[_safetensors, _pickled])
def opened(request: pytest.FixtureRequest) -> Callable[[Path, dict[str, Tensor]], Opened]:
    opener: Callable[[Path, dict[str, Tensor]], Opened] = request.param
    return opener


@pytest.fixture(params=[5, 10**6], ids=["pieces", "whole"])
def _piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", request.param)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_what_fits_as_it_lies_is_a_view_of_the_file(
    tmp_path: Path, opened: Callable[[Path, dict[str, Tensor]], Opened]
) -> None:
    x = _random(1, 6, 4)
    files, infos = opened(tmp_path, {"x": x})
    with files as given:
        for like, transposed in ((x, False), (x[0], False), (x[0].T, True)):
            found = take(given, Origin(("x",), transposed), like, torch.float32, infos)
            assert found.data_ptr() == given.mapped("x").data_ptr()
            assert torch.equal(found, like)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("_piece")
def test_another_dtype_is_rounded_once(
    tmp_path: Path,
    opened: Callable[[Path, dict[str, Tensor]], Opened],
    stored: torch.dtype,
    wanted: torch.dtype,
) -> None:
    state = {"x": _random(3, 7).to(stored), "empty": torch.zeros(0, 4).to(stored), "one": _random().to(stored)}
    files, infos = opened(tmp_path, state)
    with files as given:
        for name, tensor in state.items():
            found = take(given, Origin((name,)), tensor, wanted, infos)
            assert found.dtype == wanted
            assert found.shape == tensor.shape
            assert torch.equal(found, tensor.to(wanted))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.usefixtures("_piece")
def test_a_matrix_that_lies_the_other_way_is_turned(
    tmp_path: Path, opened: Callable[[Path, dict[str, Tensor]], Opened], transposed: bool
) -> None:
    x = _random(3, 7).to(torch.bfloat16)
    files, infos = opened(tmp_path, {"x": x})
    with files as given:
        found = take(given, Origin(("x",), transposed), x.T if transposed else x, torch.float32, infos)
    assert torch.equal(found, (x.T if transposed else x).float())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_piece")
def test_parts_are_joined_in_their_order(
    tmp_path: Path, opened: Callable[[Path, dict[str, Tensor]], Opened], stored: torch.dtype
) -> None:
    state = {"b": _random(2, 4).to(stored), "a": _random(3, 4).to(stored), "row": _random(4).to(stored)}
    files, infos = opened(tmp_path, state)
    expected = torch.cat([state["a"], state["b"], state["row"][None]]).float()
    with files as given:
        assert torch.equal(take(given, Origin(("a", "b", "row")), expected, torch.float32, infos), expected)


@pytest.mark.usefixtures("_piece")
def test_parts_of_unlike_dtypes_are_joined(tmp_path: Path, opened: Callable[[Path, dict[str, Tensor]], Opened]) -> None:
    state = {"a": _random(2, 4), "b": _random(3, 4).half()}
    files, infos = opened(tmp_path, state)
    expected = torch.cat([state["a"], state["b"].float()])
    with files as given:
        assert torch.equal(take(given, Origin(("a", "b")), expected, torch.float32, infos), expected)


def test_a_pickled_tensor_may_be_a_view_itself(tmp_path: Path) -> None:
    x = _random(5, 6)
    state = {"turned": x.T, "part": x[:, 1:4], "again": x}
    files, infos = _pickled(tmp_path, state)
    with files as given:
        for name, tensor in state.items():
            for dtype in (torch.float32, torch.bfloat16):
                assert torch.equal(take(given, Origin((name,)), tensor, dtype, infos), tensor.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["same", "other"])
def test_a_file_that_is_cut_meanwhile_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    x = _random(300, 40)
    files, infos = _safetensors(tmp_path, {"x": x, "y": x})
    path = infos["y"].path
    with files as given:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
            take(given, Origin(("x", "y")), torch.cat([x, x]), dtype, infos)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_another_meanwhile_is_named(tmp_path: Path) -> None:
    _, infos = _safetensors(tmp_path, {"x": _random(6, 4)})
    save_file({"x": torch.zeros(4, 6)}, infos["x"].path)
    with SafetensorsFiles(infos) as given, pytest.raises(ModelError, match=r"'x' has changed: \[6, 4\].*\[4, 6\]"):
        given.mapped("x")
    save_file({"y": torch.zeros(4, 6)}, infos["x"].path)
    with SafetensorsFiles(infos) as given, pytest.raises(ModelError, match=r"0\.safetensors"):
        given.mapped("x")
    for content in (b"", b"\0" * 20):
        infos["x"].path.write_bytes(content)
        with pytest.raises(ModelError, match=r"0\.safetensors"):
            SafetensorsFiles(infos)
    infos["x"].path.unlink()
    with pytest.raises(ModelError, match=r"0\.safetensors"):
        SafetensorsFiles(infos)


CONVERTING = """
import re, sys
from pathlib import Path
import torch
from mmt_cli.checkpoint.header import read_header
from mmt_cli.checkpoint.keymap import Origin
from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos
from mmt_cli.checkpoint.tensors import PickledFiles, SafetensorsFiles, take

def resident(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

torch.ones(1000, dtype=torch.bfloat16).float()
for path in map(Path, sys.argv[1:]):
    if path.suffix == ".bin":
        tensors = map_pickle(path)
        infos = {info.name: info for info in pickle_infos(path, tensors)}
        files = PickledFiles(tensors)
    else:
        infos = read_header(path).tensors
        files = SafetensorsFiles(infos)
    rows = sum(info.shape[0] for info in infos.values())
    like = torch.empty(rows, 1024, device="meta")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident("VmRSS")
    with files as given:
        found = take(given, Origin(tuple(infos)), like, torch.float32, infos)
        print(resident("VmHWM") - before)
    del found, files, given
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the peak of resident memory")
def test_what_is_converted_takes_little_more_memory_than_the_result(tmp_path: Path) -> None:
    """Neither the stored bytes nor a second copy of the result lie in memory beside it: 128 MiB from half as many."""
    paths = []
    for joined in (1, 2):
        state = {str(part): torch.zeros(32_768 // joined, 1024, dtype=torch.bfloat16) for part in range(joined)}
        paths += [tmp_path / f"{joined}.safetensors", tmp_path / f"{joined}.bin"]
        save_file(state, paths[-2])
        torch.save(state, paths[-1])
    done = subprocess.run([sys.executable, "-c", CONVERTING, *paths], capture_output=True, text=True, check=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 4
    assert 120 < min(peaks) <= max(peaks) < 128 + 40
