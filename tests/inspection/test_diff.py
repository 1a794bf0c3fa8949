"""Two checkpoints side by side."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmt_cli.errors import UsageError
from mmt_cli.inspection import values
from mmt_cli.inspection.contents import look
from mmt_cli.inspection.diff import Difference, diff

Write = Callable[..., Path]
QKV = "blocks.0.attention.inner.qkv.weight"


def compared(here: Path, there: Path, depth: int = 9) -> dict[str, Difference]:
    rows = diff(look(str(here)), look(str(there)), depth=depth)
    return {f"{row.name} {row.status}" if "only" in row.status else row.name: row for row in rows}


def test_a_model_is_the_same_as_itself(saved: Path, copy: Path) -> None:
    rows = compared(saved, copy, depth=2)
    assert {row.status for row in rows.values()} == {"same"}
    assert not any(row.is_rounded for row in rows.values())
    assert rows["blocks.0"].modality == "text"
    tensors = load_file(saved / "model.safetensors")
    assert sum(row.parameters for row in rows.values()) == sum(x.numel() for x in tensors.values())


def test_what_has_changed_is_told_with_how_far(
    saved: Path, change: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "PIECE", 13)
    before = load_file(saved / "model.safetensors")[QKV].double()
    after = before.clone()
    after[0, 0] += 1
    rows = compared(saved, change({QKV: after.float()}))
    row = rows[QKV.removesuffix(".weight")]
    assert (row.status, row.shapes) == ("changed", None)
    # The bias belongs to the module, too.
    bias = load_file(saved / "model.safetensors")[QKV.replace("weight", "bias")].double()
    a, b = torch.cat([before.view(-1), bias]), torch.cat([after.view(-1), bias])
    assert row.distance is not None
    assert row.distance.relative == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-6)
    assert row.distance.cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), rel=1e-9)
    assert row.distance.largest == pytest.approx(1, rel=1e-6)
    assert {r.status for name, r in rows.items() if name != row.name} == {"same"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_another_dtype_is_the_same_but_rounded(write: Write, dtype: torch.dtype) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    here, there = write({"a.weight": x}, "a.safetensors"), write({"a.weight": x.to(dtype)}, "b.safetensors")
    for one, other in ((here, there), (there, here)):
        row = compared(one, other)["a"]
        assert (row.status, row.is_rounded) == ("same", True)
        assert row.distance is not None and 1e-5 < row.distance.relative < 1e-2
    moved = x.to(dtype)
    moved[3] += 1
    row = compared(here, write({"a.weight": moved}, "c.safetensors"))["a"]
    assert (row.status, row.is_rounded) == ("changed", False)


def test_other_shapes_are_told_and_not_compared(write: Write) -> None:
    here = write({"a.weight": torch.ones(2, 3), "a.bias": torch.ones(3)}, "a.safetensors")
    there = write({"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3)}, "b.safetensors")
    row = compared(here, there)["a"]
    assert (row.status, row.shapes, row.parameters) == ("changed", ((2, 3), (3, 2)), 9)


def test_what_only_one_has_is_told(write: Write) -> None:
    here = write({"both.weight": torch.ones(2), "mine.weight": torch.ones(3)}, "a.safetensors")
    there = write({"both.weight": torch.ones(2), "both.bias": torch.ones(4)}, "b.safetensors")
    rows = compared(here, there)
    assert {name: (row.status, row.parameters) for name, row in rows.items()} == {
        "both": ("same", 2),
        "both only there": ("only there", 4),
        "mine only here": ("only here", 3),
    }


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), "same"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([2.0, 1.0]), "changed"),
        (torch.zeros(2), torch.zeros(2), "same"),
        (torch.zeros(2), torch.ones(2), "changed"),
        (torch.zeros(0), torch.zeros(0), "same"),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), "same"),
        (torch.tensor([1, 2]), torch.tensor([1.5, 2.0]), "changed"),
    ],
)
def test_odd_numbers_are_compared_and_written_as_json(write: Write, a: Tensor, b: Tensor, status: str) -> None:
    row = compared(write({"x": a}, "a.safetensors"), write({"x": b}, "b.safetensors"))["x"]
    assert row.status == status
    json.dumps(row.to_json(), allow_nan=False)


@pytest.mark.parametrize("family", ["git", "blip", "vit-gpt2"])
def test_our_folder_and_hugging_faces_of_one_model_are_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint/families"))
    from hf.build import build

    from mmt_cli.captioning.captioner import Captioner
    from mmt_cli.checkpoint.load import save_checkpoint

    monkeypatch.setattr(values, "PIECE", 50)
    build(family, tmp_path / "theirs")
    captioner: Any = Captioner.load(tmp_path / "theirs", device="cpu")

    def save(folder: Path) -> Path:
        parts = {"preprocessing": captioner.preprocessing, "generation": captioner.generation}
        save_checkpoint(folder, captioner.model, tokenizer=None, card="", **parts)
        return folder

    rows = compared(tmp_path / "theirs", save(tmp_path / "ours"), depth=2)
    assert {row.status for row in rows.values()} == {"same"}
    assert {row.modality for row in rows.values()} >= {"vision", "text"}
    weight = next(x for name, x in captioner.model.state_dict().items() if ".0.attention.inner.qkv.weight" in name)
    weight[0, 1] += 1
    changed = [row for row in compared(tmp_path / "theirs", save(tmp_path / "moved")).values() if row.status != "same"]
    assert [row.distance.largest for row in changed if row.distance] == [pytest.approx(1, rel=1e-3)]


def test_a_preset_cannot_be_compared(saved: Path) -> None:
    with pytest.raises(UsageError, match="--diff, model 'preset:tiny'"):
        diff(look(str(saved)), look("preset:tiny"), depth=1)
