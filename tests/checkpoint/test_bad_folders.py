"""Hugging Face folders that are broken or hostile: one line, exit 5, nothing run, nothing opened outside."""

import itertools
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmt_cli.checkpoint.families.git import RULES, config_from_hf
from mmt_cli.checkpoint.keymap import Origin, map_names
from mmt_cli.cli.app import main
from mmt_cli.model.transformer import MultimodalTransformer

WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
PHOTO = str(Path(__file__).parent.parent / "data/dog.jpg")
_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "on", "grass")
_CONFIG = {
    "model_type": "git",
    "architectures": ["GitForCausalLM"],
    "vocab_size": len(_WORDS),
    "max_position_embeddings": 64,
    "eos_token_id": 3,
    **_SIZES,
    "vision_config": {**_SIZES, "image_size": 32, "patch_size": 16},
}
_ROLES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: index for index, word in enumerate(_WORDS)},
    },
}
Breaks = Callable[[Path], object]


def _origins(state: dict[str, Tensor]) -> dict[str, Origin]:
    """Return where GIT's files keep each tensor of a model of one layer."""
    names = []
    for rule in RULES:
        pieces = re.split(r"\{([^}]*)\}", rule.theirs.replace("{i}", "0"))
        choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
        names += ["".join(chosen) for chosen in itertools.product(*choices)]
    return {ours: origin for ours, origin in map_names(names, RULES).items() if ours in state}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GIT folder with which nothing is wrong."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    state = MultimodalTransformer(config_from_hf(_CONFIG, ["output.weight"])).own_state()
    tensors: dict[str, Tensor] = {}
    for name, origin in _origins(state).items():
        tensor = 0.3 * torch.randn(state[name].shape)
        tensors |= dict(zip(origin.names, tensor.chunk(len(origin.names)), strict=True))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    for name, data in {
        "config.json": _CONFIG,
        "generation_config.json": {"eos_token_id": 3, "max_new_tokens": 4},
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32},
        "tokenizer.json": _TOKENIZER,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **_ROLES},
    }.items():
        (folder / name).write_text(json.dumps(data))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """Return a copy of it to break."""
    return shutil.copytree(good, tmp_path / "model")


def _set(file: str, **values: Any) -> Breaks:
    """Return what changes values of a JSON file; a part of it is named as `part__key`."""

    def change(folder: Path) -> None:
        data = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        for key, value in values.items():
            *parts, last = key.split("__")
            inner = data
            for part in parts:
                inner = inner[part]
            inner[last] = value
        (folder / file).write_text(json.dumps(data))

    return change


def _config(**values: Any) -> Breaks:
    return _set("config.json", **values)


def _written(file: str, content: bytes) -> Breaks:
    return lambda folder: (folder / file).write_bytes(content)


def _special(file: str, make: Breaks) -> Breaks:
    """Return what puts something that is no file in place of one."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def _sharded(shard: str = "b.safetensors", place: Breaks | None = None) -> Breaks:
    """Return what cuts the weights in two, and calls the second file `shard` in the index."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
            save_file({name: tensors[name] for name in part}, folder / file)
        where = dict.fromkeys(names[::2], "a.safetensors") | dict.fromkeys(names[1::2], shard)
        (folder / INDEX).write_text(json.dumps({"weight_map": where}))
        if place is not None:
            place(folder)

    return change


def _tensors(change: Callable[[dict[str, Tensor]], object]) -> Breaks:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return rewrite


def _filled(value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors["output.weight"].fill_(value)


def _moved_out(folder: Path) -> None:
    outside = folder.parent / "b.safetensors"
    shutil.move(folder / "b.safetensors", outside)
    (folder / "b.safetensors").symlink_to(outside)


def _moved_below(folder: Path) -> None:
    (folder / "below").mkdir()
    shutil.move(folder / "b.safetensors", folder / "below")


def _sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**40)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch RAN",)


def _pickled(file: str, write: Breaks) -> Breaks:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write(folder / file)

    return change


def _bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))


def _words(content: bytes) -> Breaks:
    """Return what puts a word list in place of tokenizer.json."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_bytes(content)

    return change


def _words_elsewhere(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / ".env").write_text("SECRET")
    _set("tokenizer_config.json", vocab_file=".env")(folder)


def _giant(folder: Path) -> None:
    """Make header and config agree on tables of 8 TiB, in a file that takes no room."""
    config = json.loads((folder / "config.json").read_text())
    vocabulary, length = 4_000_000, 1_000_000
    config |= {"vocab_size": vocabulary, "max_position_embeddings": length, "hidden_size": 65_536}
    config |= {"num_attention_heads": 512, "intermediate_size": 262_144}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        state = MultimodalTransformer(config_from_hf(config, ["output.weight"])).own_state()
    header, end = {}, 0
    for name, origin in _origins(state).items():
        for theirs in origin.names:
            shape = list(state[name].shape)
            shape[0] //= len(origin.names)
            start, end = end, end + 4 * torch.Size(shape).numel()
            header[theirs] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


# What is done to the folder, and what the message names.
BROKEN: dict[str, tuple[Breaks, str]] = {
    "a width of 1e9": (_config(hidden_size=10**9), "1000000000"),
    "a width of 0": (_config(hidden_size=0), "width"),
    "an infinite width": (_config(hidden_size=float("inf")), "hidden_size inf"),
    "a width in quotes": (_config(hidden_size="8"), "hidden_size '8'"),
    "5000 digits": (_written("config.json", b'{"hidden_size": ' + b"9" * 5_000 + b"}"), "config.json"),
    "1e7 layers": (_config(num_hidden_layers=10**7), "num_layers"),
    "heads that do not divide": (_config(num_attention_heads=3), "heads do not divide"),
    "patches of 0": (_config(vision_config__patch_size=0), "patch_size"),
    "a tower that is a list": (_config(vision_config=[1]), "vision_config"),
    "an architecture that is an object": (_config(architectures=[{}]), "architecture"),
    "a type that is a list": (_config(model_type=["git"]), "model_type"),
    "deep JSON": (_written("config.json", b"[" * 10**5 + b"]" * 10**5), "config.json"),
    "UTF-16": (_written("config.json", json.dumps(_CONFIG).encode("utf-16")), "config.json"),
    "a key twice": (_written("config.json", b'{"model_type": "git", "model_type": "git"}'), "twice"),
    "defaults no number": (_set("generation_config.json", num_beams=float("nan")), "num_beams"),
    "an end token of 1e12": (_set("generation_config.json", eos_token_id=10**12), "1000000000000"),
    "images far beyond the tower": (_set("preprocessor_config.json", size=8_192, crop_size=8_192), "far too large"),
    "images of 1e9 pixels": (_set("preprocessor_config.json", size=10**9), "size"),
    "a FIFO for a config": (_special("config.json", os.mkfifo), "config.json"),
    "a folder for weights": (_special(WEIGHTS, Path.mkdir), WEIGHTS),
    "/dev/zero for a tokenizer": (_special("tokenizer.json", lambda p: p.symlink_to("/dev/zero")), "tokenizer.json"),
    "a sparse tebibyte": (_special(WEIGHTS, _sparse), WEIGHTS),
    "a shard in the parent": (_sharded("../b.safetensors"), "../b.safetensors"),
    "a shard by its whole path": (_sharded("/b.safetensors"), "/b.safetensors"),
    "a shard behind a backslash": (_sharded("..\\b.safetensors"), "b.safetensors"),
    "a shard with NUL": (_sharded("\0b.safetensors"), "x00b.safetensors"),
    "a shard that is missing": (_sharded("c.safetensors"), "c.safetensors"),
    "a link out of the folder": (_sharded(place=_moved_out), "leads out"),
    "a head missing that is not tied": (_tensors(lambda t: t.pop("output.weight")), "head.projection.weight"),
    "a tensor missing": (_tensors(lambda t: t.pop("output.bias")), "missing"),
    "a tensor too many": (_tensors(lambda t: t.update({"\x1b[31mx": torch.ones(1)})), "unknown tensor"),
    "a wrong shape": (_tensors(lambda t: t.update({"output.bias": torch.ones(3)})), "shape"),
    "weights beyond memory": (_giant, "more memory than there is"),
    "a pickle with code": (_pickled(BIN, lambda p: p.write_bytes(pickle.dumps(_Trap()))), "more than tensors"),
    "code in torch's format": (_pickled(BIN, lambda p: torch.save({"a": _Trap()}, p)), "more than tensors"),
    "a pickle renamed": (_pickled(WEIGHTS, lambda p: torch.save({"a": _Trap()}, p)), WEIGHTS),
    "a compressed archive": (_pickled(BIN, _bomb), "compressed"),
    "NaN weights": (_tensors(_filled(float("nan"))), "NaN"),
    "infinite weights": (_tensors(_filled(float("inf"))), "NaN or infinite"),
    "a tokenizer that would abort": (_set("tokenizer.json", normalizer={"type": "Sequence"}), "tokenizer"),
    "ten million words": (_words(b"a\n" * 10**7), "lines"),
    "a vocabulary elsewhere": (_words_elsewhere, "tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_ends_in_one_line_and_exit_5(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    change, told = BROKEN[name]
    change(folder)
    code = main(["caption", PHOTO, "-m", str(folder)])
    out, err = capsys.readouterr()
    assert (code, out) == (5, "")
    assert err.startswith("mmt: error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), err
    assert len(err) < 1_000
    assert told in err
    assert not list(folder.parent.rglob("RAN"))


def _with_code(folder: Path) -> None:
    for name in ("modeling_git.py", "torch.py", "__init__.py"):
        (folder / name).write_text("open('RAN', 'w')")
    _config(auto_map={"AutoModelForCausalLM": "modeling_git.GitForCausalLM"}, trust_remote_code=True)(folder)


def _with_bom(folder: Path) -> None:
    for file in folder.glob("*config.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


FINE: dict[str, Breaks] = {
    "as it is": lambda folder: None,
    "code beside it": _with_code,
    "a byte order mark": _with_bom,
    "shards": _sharded(),
    "a shard below": _sharded("below/b.safetensors", _moved_below),
    "no defaults": lambda folder: (folder / "generation_config.json").unlink(),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_merely_odd_is_read_and_no_code_is_run(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    FINE[name](folder)
    code = main(["caption", PHOTO, "-m", str(folder), "-q", "--max-new-tokens", "4"])
    assert (code, capsys.readouterr().err) == (0, "")
    assert not list(folder.parent.rglob("RAN"))


def test_a_token_beyond_the_models_vocabulary_is_named(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    larger = _TOKENIZER["model"] | {"vocab": _TOKENIZER["model"]["vocab"] | {"zebra": len(_WORDS)}}
    (folder / "tokenizer.json").write_text(json.dumps(_TOKENIZER | {"model": larger}))
    assert main(["caption", PHOTO, "-q", "-m", str(folder), "-p", "a dog"]) == 0
    capsys.readouterr()
    assert main(["caption", PHOTO, "-q", "-m", str(folder), "-p", "a zebra"]) == 5
    assert f"token {len(_WORDS)} of the prompt, {len(_WORDS)} in the model's vocabulary" in capsys.readouterr().err
