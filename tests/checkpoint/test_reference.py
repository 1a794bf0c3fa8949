"""From one string to a checkpoint's files, before any weight is read."""

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmt_cli.checkpoint import reference
from mmt_cli.checkpoint.keymap import map_names
from mmt_cli.checkpoint.load import default_preprocessing, save_checkpoint
from mmt_cli.checkpoint.reference import bundled_names, open_reference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path, tools: ModuleType) -> Path:
    model = tools.build_model(tools.small_config("tiny"))
    pixels = default_preprocessing(model.config)
    save_checkpoint(
        tmp_path / "ours", model, tokenizer=None, preprocessing=pixels, generation=GenerationOptions(), card="A model."
    )
    return tmp_path / "ours"


def _configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {key: value for key, value in {**config, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(changed))


def test_a_folder_and_its_weights_are_the_same_checkpoint(folder: Path, tools: ModuleType) -> None:
    by_folder, by_file = open_reference(folder), open_reference(str(folder / "model.safetensors"))
    assert by_folder.config == by_file.config == tools.small_config("tiny")
    assert by_folder.tensors == by_file.tensors
    assert by_folder.family.name == "mmt"
    assert (by_folder.name, by_file.name) == ("ours", "model")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert by_folder.fingerprint() == f"ours@{digest[:12]}"


def test_a_folder_is_named_as_it_is_called_and_not_as_it_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert open_reference(".").name == "ours"
    assert open_reference("../ours/").name == "ours"


def test_a_bundled_name_comes_before_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "notes").mkdir()
    folder.rename(bundle / "mini")
    monkeypatch.setattr(reference, "BUNDLED", bundle)
    (tmp_path / "elsewhere" / "mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bundled_names() == ["mini"]
    assert open_reference("mini").name == "mini"
    assert open_reference("mini").folder == bundle / "mini"
    with pytest.raises(ModelError, match="bundled: mini"):
        open_reference("maxi")


def test_a_package_without_bundled_models_still_opens_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BUNDLED", folder / "none")
    assert open_reference(folder).name == "ours"
    with pytest.raises(ModelError, match="bundled: none"):
        open_reference("mini")


@pytest.mark.parametrize("name", ["nothing-here", "", "x" * 300, "a\0b", "org/name", "none.safetensors", "line\nbreak"])
def test_an_unknown_model_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        open_reference(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_other_files_are_no_models(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path in (folder / "README.md", folder / "pipe", "/dev/zero"):
        with pytest.raises(ModelError, match="no model file"):
            open_reference(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "absent"}, ["model_type", "None", "seed"]),
        ({"format": "absent", "model_type": "llama"}, ["'llama'", "known: seed"]),
        ({"format": "absent", "model_type": ["seed"]}, ["['seed']", "known: seed"]),
        ({"format": "absent", "model_type": "x" * 10**5}, ["'xxx", "known: seed"]),
        ({"format": "absent", "model_type": "seed"}, ["'connector'", "vocab_size"]),
        ({"format_version": 2}, ["2", "1"]),
        ({"format_version": "absent"}, ["None", "1"]),
        ({"format_version": "x" * 10**5}, ["'xxx", "1"]),
        ({"formats": 1}, ["'formats'"]),
        ({"text": "absent"}, ["config.text"]),
        ({"vision": 3}, ["vision", "3"]),
        ({"fusion": {"kind": "sum"}}, ["fusion.kind", "'sum'", "concat"]),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, ["'auto_map'"]),
    ],
)
def test_a_config_that_describes_no_model_is_refused_by_name(
    folder: Path, changes: dict[str, Any], named: list[str]
) -> None:
    _configure(folder, **changes)
    with pytest.raises(ModelError) as caught:
        open_reference(folder)
    assert [name for name in named if name not in str(caught.value)] == []
    assert len(str(caught.value)) < 300 + len(str(folder))


def test_a_folder_without_config_or_weights_is_refused_by_the_file_that_lacks(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "away")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_reference(folder)
    (folder / "away").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        open_reference(folder)


def test_tensors_of_no_known_name_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "seed"}')
    with pytest.raises(ModelError, match="unknown tensor") as caught:
        open_reference(folder)
    assert len(str(caught.value)) < 300


def test_a_tensor_name_of_a_megabyte_is_cut(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "seed"}')
    save_file({"x" * 10**6: torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="'xxx") as caught:
        open_reference(folder)
    assert len(str(caught.value)) < 400


def test_two_names_for_one_tensor_are_refused(folder: Path) -> None:
    assert load_file(folder / "model.safetensors")
    rules = ((r"drop\..*", None), (r"(?:old\.)?(.*)", r"\1"))
    assert map_names(["drop.a", "old.a", "b"], rules) == {"old.a": "a", "b": "b"}
    with pytest.raises(ModelError, match=r"'old\.a' and 'a', both 'a'"):
        map_names(["old.a", "a"], rules)


def test_the_first_rule_that_matches_decides() -> None:
    assert map_names(["a.b"], ((r"a\..*", "first"), (r".*\.b", "second"))) == {"a.b": "first"}
    with pytest.raises(ModelError, match=r"'a\.bc'"):
        map_names(["a.bc"], ((r"a\.b", "whole names only"),))
