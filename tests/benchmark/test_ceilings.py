import pytest
import torch

from mmt_cli.benchmark import ceilings
from mmt_cli.benchmark.ceilings import measure_ceilings, read_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_are_measured_in_the_dtype_of_the_model(monkeypatch, dtype):
    monkeypatch.setattr(ceilings, "_SECONDS", 0.0)
    found = measure_ceilings(torch.device("cpu"), dtype, side=64, buffer_bytes=1 << 20)
    assert (found.matrix_side, found.buffer_bytes) == (64, 1 << 20)
    assert found.flops_per_s > 0 and found.bytes_per_s > 0
    assert set(found.to_json()) == {"matrix_flops_per_s", "matrix_side", "read_bytes_per_s", "read_buffer_bytes"}


def test_the_faster_of_two_ways_counts(monkeypatch):
    seconds = iter([2.0, 1.0, 4.0, 0.5])
    monkeypatch.setattr(ceilings, "_best_s", lambda work, device: next(seconds))
    found = measure_ceilings(torch.device("cpu"), torch.float32, side=10, buffer_bytes=1 << 20)
    assert (found.flops_per_s, found.bytes_per_s) == (2 * 10**3, (1 << 20) / 0.5)


def test_buffer_is_larger_than_every_cache(monkeypatch, tmp_path):
    for index, size in enumerate(("48K", "2048K", "300M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}/size").write_text(f"{size}\n")
    monkeypatch.setattr(ceilings, "_CACHES", tmp_path)
    assert ceilings._cache_bytes(torch.device("cpu")) == 300 << 20
    monkeypatch.setattr(ceilings, "_CACHES", tmp_path / "none")
    assert ceilings._cache_bytes(torch.device("cpu")) == 64 << 20


@pytest.mark.parametrize(("text", "size"), [("32K\n", 32768), ("1M", 1 << 20), ("7", 7), ("", 0), ("xK", 0), ("é", 0)])
def test_sizes_are_read_as_the_kernel_writes_them(tmp_path, text, size):
    (tmp_path / "size").write_text(text, encoding="utf-8")
    assert read_size(tmp_path / "size") == size
    assert read_size(tmp_path / "gone") == 0
