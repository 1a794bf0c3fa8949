"""What is looked at, whether its family is known or not."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmt_cli.checkpoint.header import read_header
from mmt_cli.checkpoint.hub import Snapshot
from mmt_cli.checkpoint.hub_headers import RemoteHeader
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection.contents import look, look_at_file
from mmt_cli.inspection.summary import summary_of

Write = Callable[..., Path]


def test_a_folder_of_an_unknown_family_is_shown_by_its_own_names(tmp_path: Path) -> None:
    save_file({"bert.encoder.weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors", {"note": "x"})
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 3}')
    for reference in (tmp_path, tmp_path / "model.safetensors"):
        contents = look(str(reference))
        assert (contents.known, contents.format, contents.metadata) == (False, "safetensors", {"note": "x"})
        assert contents.config == {"model_type": "bert", "hidden_size": 3}
        assert [name for name, _ in contents.tensors] == ["bert.encoder.weight"]
        assert summary_of(contents).modalities() == []


def test_shards_of_an_unknown_family_are_one_model(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"t{number}": torch.zeros(number)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    places = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert [name for name, _ in look(str(tmp_path)).tensors] == ["t1", "t2"]


def test_a_known_family_with_a_broken_config_stays_an_error(copy: Path) -> None:
    (copy / "config.json").write_text('{"format": "mmt", "format_version": 1}')
    with pytest.raises(ModelError):
        look(str(copy))


def test_the_config_is_in_our_terms(saved: Path) -> None:
    assert look(str(saved)).config == {
        key: value
        for key, value in json.loads((saved / "config.json").read_text()).items()
        if not key.startswith("format")
    }
    config = look("preset:tiny", {"text.num_layers": 1}).config
    assert config is not None and config["text"]["num_layers"] == 1


def test_hashes_are_those_of_the_files(saved: Path) -> None:
    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert look(str(saved)).sha256() == {"model.safetensors": digest}
    assert look("preset:tiny").sha256() == {}


def test_a_file_alone_is_read_without_the_families(write: Write, saved: Path) -> None:
    assert look_at_file(str(write({"a": torch.zeros(1)}))) is not None
    assert look_at_file(str(saved)) is None
    assert look_at_file(str(saved / "model.safetensors")) is None, "its config says more of it"
    assert look_at_file("mini") is None
    with pytest.raises(UsageError, match="only hub ids have revisions"):
        from mmt_cli.checkpoint.reference import HubOptions

        look(str(write({"a": torch.zeros(1)})), hub=HubOptions(revision="v1"))


def test_a_models_weights_stay_on_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmt_cli.checkpoint import reference

    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    header = RemoteHeader(header=read_header(saved / "model.safetensors"), sha256="0" * 64)
    asked = []

    def fetch_headers(repo_id: str, **options: object) -> Snapshot:
        asked.append((repo_id, options["offline"]))
        return Snapshot(folder=folder, headers={folder / "model.safetensors": header})

    monkeypatch.setattr(reference, "fetch_headers", fetch_headers)
    monkeypatch.setattr(reference, "fetch", lambda *_, **__: pytest.fail("the weights are fetched"))
    monkeypatch.chdir(tmp_path)
    there, here = summary_of(look("org/name")), summary_of(look(str(saved)))
    assert asked == [("org/name", False)]
    assert (there.model, there.format, there.total.parameters) == ("name", "mmt", here.total.parameters)
    assert [part.to_json() for part in there.modules(2)] == [part.to_json() for part in here.modules(2)]


def test_the_header_alone_is_read_where_the_data_are_a_hole(tmp_path: Path) -> None:
    raw = json.dumps({"a": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**34)
    assert summary_of(look(str(tmp_path / "x.safetensors"))).total.parameters == 2**32


def test_neither_torch_nor_pillow_is_imported_for_a_header(write: Write) -> None:
    import subprocess

    code = (
        "import sys; from mmt_cli.inspection.contents import look; look(sys.argv[1]); "
        "print(sorted({'torch', 'PIL', 'numpy', 'safetensors', 'tokenizers', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write({"a": torch.zeros(1)}))], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_modules_shape_is_its_weights(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    parts = {part.name: part.shape for part in summary_of(look(str(saved))).modules(2)}
    assert parts["text.tokens"] == tuple(tensors["text.tokens.weight"].shape)
    assert parts["blocks.0"] is None
