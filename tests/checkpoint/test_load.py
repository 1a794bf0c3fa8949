"""A checkpoint saved and loaded again, and every way in which weights and config may not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmt_cli.checkpoint import load
from mmt_cli.checkpoint.load import load_model, save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing, load_generation, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import open_reference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.transformer import MultimodalTransformer

CPU = torch.device("cpu")


def _save(folder: Path, model: MultimodalTransformer, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "tokenizer": None,
        "preprocessing": default_preprocessing(model.config),
        "generation": GenerationOptions(),
        "card": "A model.",
    }
    save_checkpoint(folder, model, **{**settings, **changes})
    return folder


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> MultimodalTransformer:
    return load_model(open_reference(folder), device=CPU, dtype=dtype)


@pytest.fixture
def tiny(tools: ModuleType) -> MultimodalTransformer:
    model: MultimodalTransformer = tools.build_model(tools.small_config("tiny"))
    return model


def test_a_saved_model_gives_the_same_logits(model: MultimodalTransformer, tools: ModuleType, tmp_path: Path) -> None:
    again = _load(_save(tmp_path / "model", model))
    assert again.config == model.config
    ids, pixels = tools.random_ids(2, 5), tools.random_pixels(model.config, 2)
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    # Where a weight lies in memory may change the last bit of a product.
    assert (tools.called(again)(ids, pixels) - model(ids, pixels)).abs().max() < 1e-4
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_loaded_model_can_be_trained_and_saved_over_its_own_folder(
    model: MultimodalTransformer, tools: ModuleType, tmp_path: Path
) -> None:
    """Saving replaces the file that the loaded tensors may still be mapped from."""
    folder = _save(tmp_path / "model", model)
    loaded = _load(folder).requires_grad_(True)
    again = tools.called(loaded)
    ids, pixels = tools.random_ids(2, 5), tools.random_pixels(model.config, 2)
    again(ids, pixels).square().mean().backward()
    with torch.no_grad():
        for parameter in loaded.parameters():
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    _save(folder, loaded)
    state = _load(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())
    assert not torch.equal(again(ids, pixels), model(ids, pixels))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tied_head_is_stored_once_and_tied_again(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", tiny)
    assert "head.projection.weight" not in load_file(folder / "model.safetensors")
    again = _load(folder)
    assert again.head.projection.weight is again.text.tokens.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_are_stored_small_and_vectors_exactly(tools: ModuleType, tmp_path: Path, dtype: torch.dtype) -> None:
    model = tools.build_model(tools.small_config("mini"))
    folder = _save(tmp_path / "model", model, dtype=dtype)
    stored, own = load_file(folder / "model.safetensors"), model.state_dict()
    for name, tensor in stored.items():
        assert tensor.dtype == (dtype if tensor.dim() > 1 else torch.float32)
        assert torch.equal(tensor, own[name].to(tensor.dtype))
    whole, half = _load(folder), _load(folder, dtype)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    ids, pixels = tools.random_ids(1, 3), tools.random_pixels(model.config, 1)
    assert half(ids, pixels.to(dtype)).dtype == torch.float32


def test_all_files_of_the_format_are_written_and_read(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["A dog runs ."] * 3, 280)
    pixels = Preprocessing(height=32, width=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resample="bilinear")
    generation = GenerationOptions(num_beams=3, length_penalty=0.7)
    folder = _save(tmp_path / "model", tiny, tokenizer=tokenizer, preprocessing=pixels, generation=generation)
    names = ["README.md", "config.json", "generation.json", "model.safetensors", "preprocessor.json", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["format_version"]) == ("mmt", 1)
    assert (folder / "README.md").read_text() == "A model."
    source = open_reference(folder)
    assert load_preprocessing(source) == pixels
    assert load_generation(source) == generation
    found = load_tokenizer(source)
    assert found is not None
    assert found.encode("A dog") == tokenizer.encode("A dog")


def test_the_weights_take_their_name_last(
    tiny: MultimodalTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is cut short between two names still holds the old weights, which are the longest to make."""
    orders: list[list[str]] = []
    monkeypatch.setattr(load, "write_folder", lambda _, writers: orders.append(list(writers)))
    _save(tmp_path / "model", tiny, tokenizer=train_tokenizer(["A dog runs ."] * 3, 280))
    assert [order[-1] for order in orders] == ["model.safetensors"]


def test_files_that_a_folder_may_lack_have_defaults(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", tiny)
    (folder / "preprocessor.json").unlink()
    (folder / "generation.json").unlink()
    source = open_reference(folder)
    assert load_preprocessing(source) == default_preprocessing(tiny.config)
    assert load_generation(source) == GenerationOptions(stop_loops=True)
    assert load_tokenizer(source) is None


def test_our_own_models_stop_loops_unless_their_file_says_otherwise(
    tiny: MultimodalTransformer, tmp_path: Path
) -> None:
    folder = _save(tmp_path / "model", tiny)
    for content, expected in (({"num_beams": 2}, True), ({"stop_loops": False}, False), ({"stop_loops": True}, True)):
        (folder / "generation.json").write_text(json.dumps(content))
        assert load_generation(open_reference(folder)).stop_loops == expected


def test_another_tokenizer_can_be_given(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    own, other = train_tokenizer(["dog dog dog"] * 3, 270), train_tokenizer(["cat cat cat"] * 3, 270)
    folder = _save(tmp_path / "model", tiny, tokenizer=own)
    other.save(tmp_path / "other.json")
    found = load_tokenizer(open_reference(folder), str(tmp_path / "other.json"))
    assert found is not None
    assert found.encode("cat") == other.encode("cat") != own.encode("cat")


def test_the_pixels_of_a_new_tower_lie_as_it_was_trained(tools: ModuleType) -> None:
    """EfficientNet-Lite reads (pixel - 127) / 128 of pixels from 0 to 255."""
    found = default_preprocessing(tools.small_config("mini"))
    assert (found.height, found.width) == (64, 64)
    for level in (0, 127, 255):
        assert [(level / 255 - m) / s for m, s in zip(found.mean, found.std, strict=True)] == pytest.approx(
            [(level - 127) / 128] * 3
        )


def _spoilt(folder: Path, change: dict[str, Tensor | None]) -> None:
    state: dict[str, Tensor | None] = {**load_file(folder / "model.safetensors"), **change}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks.1.mlp.inner.up.bias": None}, ["'blocks.1.mlp.inner.up.bias' is missing"]),
        ({"blocks.3.mlp.inner.up.bias": torch.zeros(64)}, ["'blocks.3.mlp.inner.up.bias' is unexpected"]),
        ({"text.positions": torch.zeros(49, 32)}, ["'text.positions'", "[49, 32]", "[48, 32]"]),
        ({"text.positions": torch.zeros(32, 48)}, ["'text.positions'", "[32, 48]", "[48, 32]"]),
        ({"head.norm.bias": torch.zeros(())}, ["'head.norm.bias'", "[]", "[32]"]),
        (
            {"head.norm.bias": None, "head.norm.weight": torch.zeros(3), "tail": torch.zeros(1)},
            ["'head.norm.bias' is missing", "[3]", "[32]", "'tail' is unexpected"],
        ),
        ({f"{index}" * 3: torch.zeros(1) for index in range(9)}, ["and 4 more"]),
        ({"\x1b[31m\n": torch.zeros(1)}, [r"'\x1b[31m\n'"]),
        ({"x" * 10**6: torch.zeros(1)}, ["'xxx"]),
    ],
    ids=range(9),
)
def test_tensors_that_do_not_fit_the_config_are_named_with_both_shapes(
    tiny: MultimodalTransformer, tmp_path: Path, change: dict[str, Tensor | None], named: list[str]
) -> None:
    folder = _save(tmp_path / "model", tiny)
    _spoilt(folder, change)
    with pytest.raises(ModelError) as caught:
        _load(folder)
    assert [name for name in named if name not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(folder))


def test_a_config_far_too_large_is_refused_before_memory_is_taken(
    tiny: MultimodalTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _save(tmp_path / "model", tiny)
    config = json.loads((folder / "config.json").read_text())
    config["text"]["vocab_size"] = 4_000_000
    config["text"]["block"] |= {"width": 65_536, "mlp_width": 262_144}
    config["vision"]["block"] |= {"width": 65_536}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'vision\.positions'.*\[16, 32\].*\[16, 65536\]"):
        _load(folder)
    monkeypatch.setattr(os, "sysconf", lambda _: 10)
    with pytest.raises(ModelError, match="more memory than there is"):
        _load(_save(tmp_path / "other", tiny))


def test_a_file_that_changed_since_its_header_was_read_is_refused(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", tiny)
    source = open_reference(folder)
    for content in (b"", b"\0" * 20):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            load_model(source, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("generation.json", {"beams": 3}, ["generation.json", "beams"]),
        ("generation.json", {"num_beams": 0}, ["generation.json", "num_beams"]),
        ("generation.json", [], ["generation.json", "list"]),
        ("preprocessor.json", {"height": 32}, ["preprocessor.json", "width"]),
        ("preprocessor.json", [], ["preprocessor.json", "list"]),
        (
            "preprocessor.json",
            {"height": 60, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 1]},
            ["preprocessor.json", "60 x 32", "patch_size 8"],
        ),
    ],
)
def test_settings_beside_the_weights_that_do_not_fit_are_named(
    tiny: MultimodalTransformer, tmp_path: Path, name: str, content: object, named: list[str]
) -> None:
    folder = _save(tmp_path / "model", tiny)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        (load_generation if name == "generation.json" else load_preprocessing)(open_reference(folder))
    assert [part for part in named if part not in str(caught.value)] == []


def test_a_save_that_fails_leaves_the_old_checkpoint(
    tiny: MultimodalTransformer, tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _save(tmp_path / "model", tiny)
    ids, pixels = tools.random_ids(1, 3), tools.random_pixels(tiny.config, 1)
    expected = _load(folder)(ids, pixels)

    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(load, "save_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        _save(folder, tools.build_model(tiny.config, seed=1), card="Another.")
    assert torch.equal(_load(folder)(ids, pixels), expected)
    assert (folder / "README.md").read_text() == "A model."
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_loading_imports_nothing_heavy(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    """torch's compiler and sympy take longer to import than a caption takes to write; numpy is not needed."""
    folder = _save(tmp_path / "model", tiny)
    program = (
        "import sys; from mmt_cli import Captioner; Captioner.load(sys.argv[1], device='cpu'); "
        "print([name for name in ('torch._dynamo', 'sympy', 'transformers', 'numpy.random') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reading_what_a_checkpoint_is_imports_no_torch(tiny: MultimodalTransformer, tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", tiny)
    program = (
        "import sys; from mmt_cli.checkpoint.reference import open_reference; "
        "print(open_reference(sys.argv[1]).name, [n for n in ('torch', 'numpy', 'tokenizers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "model []\n"


def test_every_preset_has_a_preprocessing_of_its_size(model: MultimodalTransformer) -> None:
    config: ModelConfig = model.config
    found = default_preprocessing(config)
    assert (found.height, found.width) == (config.vision.image_size, config.vision.image_size)
