"""Checkpoints written into new folders, whole or not at all."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection import convert, values
from mmt_cli.inspection.check import check
from mmt_cli.inspection.contents import look
from mmt_cli.inspection.convert import SaveOptions, save

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint/families"))
PHOTO = str(Path(__file__).parent.parent / "data/dog.jpg")


def saved_as(source: Path | str, folder: Path, **options: Any) -> Path:
    save(look(str(source)), SaveOptions(folder=folder, **options))
    return folder


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def test_a_checkpoint_comes_out_as_it_went_in(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PIECE", 100)
    out = saved_as(saved, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in saved.iterdir())
    before, after = loaded(saved), loaded(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], x) and after[name].dtype == x.dtype for name, x in before.items())
    for name in ("config.json", "tokenizer.json", "README.md"):
        assert (out / name).read_bytes() == (saved / name).read_bytes()
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_matrices_of_ours_take_the_dtype_and_vectors_stay_exact(saved: Path, tmp_path: Path, dtype: str) -> None:
    before, after = loaded(saved), loaded(saved_as(saved, tmp_path / "out", dtype=dtype))
    for name, x in before.items():
        wanted = getattr(torch, dtype) if x.dim() > 1 else torch.float32
        assert torch.equal(after[name], x.to(wanted)) and after[name].dtype == wanted
    assert check(str(tmp_path / "out")).findings == ()


def test_shards_are_filled_in_turn_and_load(saved: Path, tmp_path: Path) -> None:
    out = saved_as(saved, tmp_path / "out", shard_size=50_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in out.glob("model-*"))
    assert len(files) > 2 and files[0] == f"model-00001-of-0000{len(files)}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(x.numel() * x.element_size() for x in loaded(saved).values())
    for file in files:
        held = load_file(out / file)
        assert len(held) == 1 or sum(x.numel() * x.element_size() for x in held.values()) <= 50_000
    [one], [other] = (Captioner.load(folder, device="cpu").caption([PHOTO]) for folder in (saved, out))
    assert one.tokens == other.tokens
    assert one.logprob == pytest.approx(other.logprob)  # weights lie at other addresses: last bits may differ
    assert check(str(out)).findings == ()


def test_only_safetensors_are_the_weights_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    out = saved_as(saved, tmp_path / "out", only_safetensors=True)
    assert [file.name for file in out.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("family", ["git", "vit-gpt2", "smolvlm"])
def test_a_hugging_face_folder_loads_again_with_the_same_logits(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf.build import _CLASSES, build, transformers

    built = build(family, tmp_path / "in")
    out = saved_as(tmp_path / "in", tmp_path / "out", shard_size=60_000, format="hf")
    again = getattr(transformers, _CLASSES[family]).from_pretrained(out, dtype="float32")
    state, other = built.model.state_dict(), again.state_dict()
    assert all(torch.equal(other[name], x) for name, x in state.items())
    [one], [same] = (Captioner.load(tmp_path / f, device="cpu").caption([PHOTO]) for f in ("in", "out"))
    assert one.tokens == same.tokens
    assert one.logprob == pytest.approx(same.logprob)
    half = saved_as(tmp_path / "in", tmp_path / "half", dtype="float16")
    assert {x.dtype for x in loaded(half).values() if x.is_floating_point()} == {torch.float16}
    assert "float16" in (half / "config.json").read_text()


def test_pickles_become_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf.build import build

    build("git", tmp_path / "in")
    tensors = load_file(tmp_path / "in/model.safetensors")
    (tmp_path / "in/model.safetensors").unlink()
    torch.save(tensors, tmp_path / "in/pytorch_model.bin")
    out = saved_as(tmp_path / "in", tmp_path / "out")
    assert not list(out.glob("*.bin"))
    assert all(torch.equal(loaded(out)[name], x) for name, x in tensors.items())


def test_a_number_too_large_for_the_dtype_is_refused_and_nothing_is_left(write: Callable[..., Path]) -> None:
    source = write({"a": torch.tensor([[1.0, 70_000.0]])})
    out = source.parent / "out"
    with pytest.raises(ModelError, match=r"'a' holds 7e\+04, torch.float16 ends at 6.55e\+04"):
        saved_as(source, out, dtype="float16", only_safetensors=True)
    assert sorted(source.parent.iterdir()) == [source]
    saved_as(source, out, dtype="bfloat16", only_safetensors=True)


def test_infinity_and_nan_stay_what_they_are(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write({"a": torch.tensor([float("inf"), float("nan"), 1.0])})
    out = loaded(saved_as(source, tmp_path / "out", dtype="float16", only_safetensors=True))["a"]
    assert torch.equal(out, torch.tensor([float("inf"), float("nan"), 1.0]).half()) or out[1].isnan()
    assert out[0].isinf() and out[2] == 1


def test_a_disk_that_is_full_leaves_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_write", full)
    with pytest.raises(UsageError, match="No space left on device"):
        saved_as(saved, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "full folder", "link to nothing"])
def test_what_is_there_is_never_overwritten(saved: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "full folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--save names what is there already"):
        saved_as(saved, out)


def test_an_empty_folder_is_taken(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert check(str(saved_as(saved, tmp_path / "out"))).findings == ()


def test_a_model_that_does_not_fit_its_config_is_not_written(change: Callable[..., Path], tmp_path: Path) -> None:
    folder = change({"blocks.0.attention.inner.qkv.bias": None})
    with pytest.raises(ModelError, match=r"'blocks.0.attention.inner.qkv.bias' is missing\); see --check"):
        saved_as(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_that_cannot_hold_the_model_are_refused(
    saved: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no Hugging Face family has this model \(--save-format hf"):
        saved_as(saved, tmp_path / "out", format="hf")
    with pytest.raises(UsageError, match="add --only-safetensors"):
        saved_as(write({"a": torch.zeros(1)}), tmp_path / "out")
    with pytest.raises(UsageError, match=r"a preset has no weights \(--save"):
        saved_as("preset:tiny", tmp_path / "out")
