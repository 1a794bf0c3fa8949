"""From one string to a checkpoint's files, before any weight is read."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmt_cli.checkpoint import reference
from mmt_cli.checkpoint.load import load_model, save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.checkpoint.reference import HubOptions, bundled_names, open_reference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, UsageError


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
    assert by_folder.infos == by_file.infos
    assert by_folder.origins == by_file.origins
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
    assert open_reference("mini").folder.path == bundle / "mini"
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
        open_reference(name, HubOptions(offline=True))
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


def _sharded(folder: Path, ending: str, count: int = 3) -> list[Path]:
    """Cut a folder's weights into shards with an index; return these, in the order of their names."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    save: Callable[[dict[str, torch.Tensor], Path], object] = save_file if ending == "safetensors" else torch.save
    places = {name: f"{stem}-{index % count + 1:05}-of-{count:05}.{ending}" for index, name in enumerate(state)}
    paths = [folder / shard for shard in sorted(set(places.values()))]
    for path in paths:
        save({name: state[name] for name, shard in places.items() if shard == path.name}, path)
    _index(folder, ending, places)
    return paths


def _index(folder: Path, ending: str, places: dict[str, str]) -> None:
    stem = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[ending]
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _logits(folder: Path, tools: ModuleType) -> torch.Tensor:
    model = load_model(open_reference(folder), device=torch.device("cpu"), dtype=torch.float32)
    logits: torch.Tensor = model(tools.random_ids(2, 3), tools.random_pixels(model.config, 2))
    return logits


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(folder: Path, tools: ModuleType, ending: str) -> None:
    whole, expected = open_reference(folder), _logits(folder, tools)
    paths = _sharded(folder, ending)
    source = open_reference(folder)
    assert list(source.weights.files) == paths
    assert source.weights.format == {"safetensors": "safetensors", "bin": "pytorch"}[ending]
    assert source.config == whole.config
    assert source.origins == whole.origins
    told = {name: (info.dtype, info.shape, info.nbytes) for name, info in source.infos.items()}
    assert told == {name: (info.dtype, info.shape, info.nbytes) for name, info in whole.infos.items()}
    assert {info.path for info in source.infos.values()} == set(paths)
    assert (_logits(folder, tools) - expected).abs().max() <= 1e-5
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert source.fingerprint() == f"ours@{hashlib.sha256(''.join(hashes).encode()).hexdigest()[:12]}"


def test_a_pickle_is_a_checkpoint_where_there_are_no_safetensors(folder: Path, tools: ModuleType) -> None:
    expected = _logits(folder, tools)
    state = load_file(folder / "model.safetensors")
    torch.save({name: torch.zeros_like(tensor) for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert open_reference(folder).weights.format == "safetensors"
    assert (_logits(folder, tools) - expected).abs().max() == 0
    (folder / "model.safetensors").unlink()
    assert _logits(folder, tools).abs().max() == 0
    torch.save(state, folder / "pytorch_model.bin")
    assert (_logits(folder, tools) - expected).abs().max() <= 1e-5
    source = open_reference(folder)
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    assert source.fingerprint() == f"ours@{digest[:12]}"
    assert source.metadata == {}


def test_a_pickle_that_does_not_fit_is_named_as_a_header_is(folder: Path, tools: ModuleType) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["text.positions"] = torch.zeros(49, 32)
    state["tail"] = torch.zeros(1)
    del state["head.norm.bias"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        _logits(folder, tools)
    for named in ("'head.norm.bias' is missing", "'tail' is unexpected", "[49, 32]", "[48, 32]"):
        assert named in str(caught.value)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_folders_pickle_runs_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"text.positions": _Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        open_reference(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_that_do_not_fit_their_index_are_refused(folder: Path, ending: str) -> None:
    paths = _sharded(folder, ending)
    save: Callable[[dict[str, torch.Tensor], Path], object] = save_file if ending == "safetensors" else torch.save
    state = load_file(paths[1]) if ending == "safetensors" else torch.load(paths[1])
    first, *rest = state
    save({name: state[name] for name in rest}, paths[1])
    with pytest.raises(ModelError, match=rf"{paths[1].name}.*'{first}' missing"):
        open_reference(folder)
    save(state | {"more": torch.zeros(1)}, paths[1])
    with pytest.raises(ModelError, match=rf"{paths[1].name}.*'more' not indexed"):
        open_reference(folder)
    save(state, paths[1])
    open_reference(folder)
    paths[1].unlink()
    with pytest.raises(ModelError, match=rf"a shard is missing .*{paths[1].name}"):
        open_reference(folder)


def test_a_native_folder_without_json_of_hugging_face_has_none(folder: Path) -> None:
    """What lies beside our own files is not ours to read."""
    (folder / "generation_config.json").write_text("[")
    source = open_reference(folder)
    assert source.generation_config is None
    assert source.habits == source.raw_config


def test_only_hub_ids_have_revisions(folder: Path) -> None:
    with pytest.raises(UsageError, match="--revision v1"):
        open_reference(folder, HubOptions(revision="v1"))
