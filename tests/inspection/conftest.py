"""Small checkpoints of ours, and files of tensors alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset


@pytest.fixture(scope="session")
def saved(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ours with a tokenizer, of the preset `tiny`."""
    tokenizer = train_tokenizer(["A dog runs over the grass.", "Two dogs in the grass."] * 2, 300)
    model = tools.build_model(preset("tiny", {"text.vocab_size": tokenizer.vocab_size}))
    folder: Path = tmp_path_factory.mktemp("saved") / "tiny"
    save_checkpoint(
        folder,
        model,
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="# A card\n",
    )
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def change(copy: Path) -> Callable[..., Path]:
    """Return a function that changes tensors of the copy, drops those that are None, and gives its folder."""

    def rewrite(changes: dict[str, Tensor | None]) -> Path:
        tensors = load_file(copy / "model.safetensors") | changes
        save_file({k: v for k, v in tensors.items() if v is not None}, copy / "model.safetensors", {"format": "pt"})
        return copy

    return rewrite


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes tensors into a file with no config beside it."""

    def save(tensors: dict[str, Tensor], name: str = "bare.safetensors") -> Path:
        (tmp_path / "files").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "files" / name)
        return tmp_path / "files" / name

    return save
