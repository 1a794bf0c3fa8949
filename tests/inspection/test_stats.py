"""Statistics against torch's own, and what they cost."""

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mmt_cli.errors import UsageError
from mmt_cli.inspection import values
from mmt_cli.inspection.contents import look
from mmt_cli.inspection.stats import BINS, Moments, stats_of

Write = Callable[..., Path]
_NUMBERS = st.lists(st.floats(-1e6, 1e6), max_size=30)


@given(st.lists(_NUMBERS, max_size=5))
def test_sums_of_pieces_are_those_of_the_whole(pieces: list[list[float]]) -> None:
    moments = Moments()
    for piece in pieces:
        moments.add(torch.tensor(piece, dtype=torch.float64))
    whole = torch.tensor([x for piece in pieces for x in piece], dtype=torch.float64)
    assert moments.count == len(whole)
    if len(whole):
        assert moments.mean == pytest.approx(float(whole.mean()), rel=1e-9, abs=1e-6)
        assert moments.std == pytest.approx(float(whole.std(correction=0)), rel=1e-6, abs=1e-6)
        assert (moments.minimum, moments.maximum) == (float(whole.min()), float(whole.max()))
        assert moments.zeros == int((whole == 0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_statistics_of_a_tensor_are_torchs(write: Write, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(values, "PIECE", 7)
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0] = 0
    [row] = stats_of(look(str(write({"x": x}))), depth=2, tensors=True)
    wide = x.double()
    assert row.moments.mean == pytest.approx(float(wide.mean()))
    assert row.moments.std == pytest.approx(float(wide.std(correction=0)))
    assert (row.moments.minimum, row.moments.maximum) == (float(wide.min()), float(wide.max()))
    assert row.zeros == float((wide == 0).double().mean())
    counted = torch.histc(wide, BINS, row.moments.mean - 3 * row.moments.std, row.moments.mean + 3 * row.moments.std)
    assert sum(row.histogram) == 50
    assert max(abs(a - b) for a, b in zip(row.histogram, counted.tolist(), strict=True)) <= 1


def test_what_is_no_number_counts_apart(write: Write) -> None:
    odd = torch.tensor([1.0, 3.0, float("nan"), float("inf"), float("-inf")])
    rows = stats_of(look(str(write({"odd": odd, "none": torch.full((2,), float("nan"))}))), depth=2, tensors=True)
    none, some = (row.to_json() for row in rows)
    assert (some["count"], some["mean"], some["std"], some["nan"], some["inf"]) == (5, 2.0, 1.0, 1, 2)
    assert (none["mean"], none["max"], none["nan"], none["histogram"]) == (None, None, 2, [0] * BINS)
    json.dumps([none, some], allow_nan=False)


@pytest.mark.parametrize("x", [torch.zeros(0), torch.ones(4), torch.tensor(2.5), torch.arange(5), torch.tensor([True])])
def test_any_tensor_has_statistics(write: Write, x: Tensor) -> None:
    [row] = stats_of(look(str(write({"x": x}))), depth=1)
    assert sum(row.histogram) == x.numel()


def test_modules_hold_the_numbers_of_their_tensors(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    rows = {row.name: row for row in stats_of(look(str(saved)), depth=1)}
    blocks = torch.cat([x.view(-1).double() for name, x in tensors.items() if name.startswith("blocks.")])
    assert rows["blocks"].moments.mean == pytest.approx(float(blocks.mean()))
    assert rows["blocks"].moments.std == pytest.approx(float(blocks.std(correction=0)))
    assert rows["blocks"].modality == "text"
    assert next(iter(rows)) == "vision"
    assert sum(row.moments.count for row in rows.values()) == sum(x.numel() for x in tensors.values())


def test_pickles_have_statistics_too(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, 2.0, 3.0]).expand(2, 3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    [row] = stats_of(look(str(tmp_path)), depth=1)
    assert (row.moments.mean, row.moments.count) == (2.0, 6)


def test_a_preset_has_none() -> None:
    with pytest.raises(UsageError, match=r"a preset has no weights \(--stats, model 'preset:tiny'\)"):
        stats_of(look("preset:tiny"), depth=1)


def test_a_large_tensor_is_read_in_pieces(tmp_path: Path) -> None:
    path, before = tmp_path / "x.safetensors", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raw = json.dumps({"x": {"dtype": "F32", "shape": [64, 1024, 1024], "data_offsets": [0, 2**28]}}).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**28)
    [row] = stats_of(look(str(path)), depth=1)
    assert (row.zeros, row.moments.count, row.moments.std) == (1.0, 2**26, 0.0)
    assert not math.isnan(row.moments.mean)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024  # KiB; the tensor has 256 MiB
