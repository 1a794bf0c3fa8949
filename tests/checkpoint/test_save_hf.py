"""Models written back into the Hugging Face folder that they came from."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.save_hf import HuggingFaceFolder
from mmt_cli.errors import ModelError

sys.path.insert(0, str(Path(__file__).parent / "families"))
pytest.importorskip("transformers")

from hf.build import build

FAMILIES = ("git", "blip", "vit-gpt2", "smolvlm", "trocr")
HEAD = "text_decoder.cls.predictions."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a family's folder, built once."""
    kept: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in kept:
            kept[family] = build(family, tmp_path_factory.mktemp(family)).folder
        return kept[family]

    return get


@pytest.fixture
def copy(source: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that gives a family's folder of the test's own."""
    return lambda family: Path(shutil.copytree(source(family), tmp_path / family))


def save(folder: Path, out: Path, captioner: Captioner | None = None, **changes: Any) -> Path:
    captioner = captioner or Captioner.load(folder, device="cpu")
    assert captioner.source is not None
    options = {"preprocessing": captioner.preprocessing, "card": "# A card\n", **changes}
    HuggingFaceFolder(captioner.source).save(out, captioner.model, **options)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, changes: dict[str, torch.Tensor]) -> None:
    save_file({**tensors(folder), **changes}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_nobody_changed_comes_back_to_the_bit(source: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    folder = source(family)
    out = save(folder, tmp_path / "out")
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    others = [path.name for path in folder.iterdir() if path.name != "model.safetensors"]
    assert {path.name for path in out.iterdir()} == {*others, "model.safetensors", "README.md"}
    for name in others:
        if name == "config.json":  # key by key: who wrote it may indent in another way
            assert json.loads((out / name).read_bytes()) == json.loads((folder / name).read_bytes())
        else:
            assert (out / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_model_reaches_the_file(source: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    captioner = Captioner.load(source(family), device="cpu")
    for tensor in captioner.model.own_state().values():
        tensor.data += 1
    out = save(source(family), tmp_path / "out", captioner)
    again = Captioner.load(out, device="cpu").model.own_state()
    assert all(torch.equal(tensor, again[name]) for name, tensor in captioner.model.own_state().items())
    before, after = tensors(source(family)), tensors(out)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if "pooler" in name}


def test_what_the_source_holds_twice_is_written_twice_as_it_became(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("blip")
    tokens, bias = (
        tensors(folder)[name] for name in ("text_decoder.bert.embeddings.word_embeddings.weight", HEAD + "bias")
    )
    rewrite(folder, {HEAD + "decoder.weight": tokens.clone(), HEAD + "decoder.bias": bias.clone()})
    captioner = Captioner.load(folder, device="cpu")
    captioner.model.head.projection.weight.data += 1
    assert captioner.model.head.projection.bias is not None
    captioner.model.head.projection.bias.data += 2
    after = tensors(save(folder, tmp_path / "out", captioner))
    assert torch.equal(after[HEAD + "decoder.weight"], tokens + 1)
    assert torch.equal(after[HEAD + "bias"], bias + 2)
    assert torch.equal(after[HEAD + "decoder.bias"], bias + 2)


def test_what_our_model_does_not_read_is_kept(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("git")
    unread = {
        "git.embeddings.position_ids": torch.arange(64)[None],
        "git.img_temporal_embedding.0": torch.randn(1, 1, 40),
    }
    rewrite(folder, unread)
    after = tensors(save(folder, tmp_path / "out", dtype=torch.float16))
    assert torch.equal(after["git.embeddings.position_ids"], unread["git.embeddings.position_ids"])
    assert torch.equal(after["git.img_temporal_embedding.0"], unread["git.img_temporal_embedding.0"].half())


def test_pickled_weights_become_safetensors(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("vit-gpt2")
    before = tensors(folder)
    (folder / "model.safetensors").unlink()
    torch.save(before, folder / "pytorch_model.bin")
    out = save(folder, tmp_path / "out")
    assert not (out / "pytorch_model.bin").exists()
    after = tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_config_names_the_dtype_of_the_weights_in_its_own_spelling(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy("blip")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = save(folder, tmp_path / "out", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.bfloat16}
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (written.pop("dtype"), written["text_config"].pop("torch_dtype")) == ("bfloat16", "bfloat16")
    config.pop("dtype")
    config["text_config"].pop("torch_dtype")
    assert written == config | {key: written[key] for key in ("text_config", "vision_config")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sparse = save(folder, tmp_path / "sparse", dtype=torch.float16)
    assert json.loads((sparse / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "float16"


def test_a_model_that_learned_whole_images_says_so_in_both_processors(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    captioner = Captioner.load(source("smolvlm"), device="cpu")
    whole = captioner.preprocessing.without_split()
    assert whole != captioner.preprocessing
    out = save(source("smolvlm"), tmp_path / "out", captioner, preprocessing=whole)
    assert Captioner.load(out, device="cpu").preprocessing == whole
    for name, path in (("preprocessor_config.json", ()), ("processor_config.json", ("image_processor",))):
        before, after = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (source("smolvlm"), out))
        changed = after
        for key in path:
            before[key], changed = dict(before[key]), changed[key]
        assert changed["do_image_splitting"] is False
        changed["do_image_splitting"] = True
        assert before == after


def test_a_link_out_of_the_folder_is_not_followed(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("git")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of the folder"):
        save(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
