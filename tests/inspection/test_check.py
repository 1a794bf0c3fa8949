"""What is wrong with a checkpoint is found, all of it, and nothing else."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection.check import check, raise_if_broken

HEAD, BIAS = "blocks.0.attention.inner.qkv.weight", "blocks.0.attention.inner.qkv.bias"
Change = Callable[..., Path]


def found(folder: Path | str, **options: Any) -> list[tuple[str, str | None, str]]:
    return [(f.part, f.tensor, f.message) for f in check(str(folder), **options).findings]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> None:
    """Cut the weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_a_sound_checkpoint_has_no_findings(saved: Path) -> None:
    report = check(str(saved))
    assert (report.findings, report.model, report.format) == ((), "tiny", "mmt")
    assert report.tensors == len(load_file(saved / "model.safetensors"))
    raise_if_broken(report)


def test_a_sound_checkpoint_in_shards_has_no_findings(copy: Path) -> None:
    shard(copy)
    assert found(copy) == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([float("nan")], "1 NaN among {} numbers"),
        ([float("inf"), float("-inf")], "2 Inf among {} numbers"),
        ([float("nan"), float("inf")], "1 NaN and 1 Inf among {} numbers"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers_that_are_none_are_counted(
    saved: Path, change: Change, values: list[float], told: str, dtype: torch.dtype
) -> None:
    weight = load_file(saved / "model.safetensors")[HEAD].to(dtype)
    weight.view(-1)[5 : 5 + len(values)] = torch.tensor(values, dtype=dtype)
    folder = change({HEAD: weight})
    assert found(folder) == [("values", HEAD, told.format(f"{weight.numel():,}"))]


def test_every_misfit_between_tensors_and_config_is_named(change: Change) -> None:
    folder = change({HEAD: None, BIAS: torch.zeros(7), "stray.weight": torch.zeros(2)})
    tensors = {(name, what.partition(",")[0]) for part, name, what in found(folder) if part == "tensors"}
    assert tensors == {(HEAD, "is missing"), (BIAS, "has shape [7]"), ("stray.weight", "is unexpected")}


def test_whole_numbers_in_place_of_real_ones_are_found(saved: Path, change: Change) -> None:
    bias = load_file(saved / "model.safetensors")[BIAS].to(torch.int32)
    assert found(change({BIAS: bias})) == [("tensors", BIAS, "holds whole numbers (I32), the model real ones")]


def test_a_dtype_that_the_config_does_not_name_is_found(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint/families"))
    from hf.build import build

    build("blip", tmp_path / "blip")
    assert found(tmp_path / "blip") == []
    tensors = load_file(tmp_path / "blip/model.safetensors")
    name = "text_decoder.bert.encoder.layer.0.attention.self.query.weight"
    save_file(tensors | {name: tensors[name].half()}, tmp_path / "blip/model.safetensors", {"format": "pt"})
    assert found(tmp_path / "blip") == [("tensors", name, "is stored as float16, the config says float32")]
    tensors["text_decoder.surprise"] = torch.zeros(1)
    save_file(tensors, tmp_path / "blip/model.safetensors", {"format": "pt"})
    assert found(tmp_path / "blip") == [("tensors", "text_decoder.surprise", "is unexpected")]


def test_all_missing_shards_are_named_and_their_tensors_are_not(copy: Path) -> None:
    shard(copy)
    for file in copy.glob("model-*"):
        file.unlink()
    told = found(copy)
    assert [part for part, _, _ in told] == ["shards", "shards"]
    assert "'model-00001-of-00002.safetensors' is missing" in told[0][2]


def test_an_index_that_promises_other_tensors_is_found(copy: Path) -> None:
    shard(copy)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["promised"] = "model-00001-of-00002.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    [(part, _, what)] = found(copy)
    assert (part, "'promised' missing" in what) == ("shards", True)


def test_a_broken_header_is_one_finding(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1])
    [(part, _, what)] = found(copy)
    assert (part, "tensors end at data byte" in what) == ("header", True)


def test_a_broken_shard_is_one_finding_and_its_tensors_are_none(copy: Path) -> None:
    shard(copy)
    (copy / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 16)
    assert [part for part, _, _ in found(copy)] == ["header"]


def test_several_things_are_found_in_one_run(copy: Path) -> None:
    edit(copy / "preprocessor.json", height=64, width=64)
    edit(copy / "generation.json", num_beams=-1)
    (copy / "tokenizer.json").write_text("{}")
    assert [part for part, _, _ in found(copy)] == ["tokenizer", "images", "generation"]


def test_a_tokenizer_larger_than_the_vocabulary_is_found(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["surprise"] = size
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = f"the tokenizer has ids up to {size}, the model's vocabulary ends at {size - 1}"
    assert found(copy) == [("tokenizer", None, told)]


def test_a_tokenizer_can_be_given(copy: Path, saved: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert found(copy) == [], "a folder without one is sound"
    (copy / "other.json").write_text("[]")
    [(part, _, _)] = found(copy, tokenizer=str(copy / "other.json"))
    assert part == "tokenizer"
    assert found(copy, tokenizer=str(saved)) == []


@pytest.mark.parametrize("content", ["{", '{"format": "mmt", "format_version": 99}', '{"model_type": "bert"}'])
def test_a_config_that_cannot_be_read_is_a_finding_and_the_numbers_are_looked_at_all_the_same(
    saved: Path, change: Change, content: str
) -> None:
    folder = change({BIAS: torch.full_like(load_file(saved / "model.safetensors")[BIAS], float("nan"))})
    (folder / "config.json").write_text(content)
    assert [part for part, _, _ in found(folder)] == ["config", "values"]


def test_a_folder_without_a_config_or_without_weights_says_so(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert found(copy) == [("config", None, "config.json is missing")]
    (copy / "model.safetensors").unlink()
    assert [part for part, _, _ in found(copy)] == ["config", "shards"]


def test_a_bare_file_needs_no_config(write: Change) -> None:
    assert found(write({"a": torch.zeros(3)})) == []
    assert found(write({"a": torch.tensor([1.0, float("nan")])})) == [("values", "a", "1 NaN among 2 numbers")]


def test_messages_are_one_line(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "\\n"}')
    assert all("\n" not in what for _, _, what in found(copy))


def test_what_is_not_there_is_no_finding_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model"):
        check(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="a preset has no weights"):
        check("preset:tiny")


def test_a_report_with_findings_is_an_error_with_their_number(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"not sound \('copy', 1 finding\)"):
        raise_if_broken(check(str(copy)))
