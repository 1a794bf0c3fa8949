"""Weights into a model, and a model into a folder."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmt_cli.checkpoint.families import FORMAT_VERSION
from mmt_cli.checkpoint.files import WEIGHTS, json_bytes, read_json, write_folder
from mmt_cli.checkpoint.header import read_header
from mmt_cli.checkpoint.keymap import Rules, map_names
from mmt_cli.checkpoint.reference import Source
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ConfigError, ModelError, UsageError, shown
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.transformer import MultimodalTransformer

TOKENIZER, PREPROCESSOR, GENERATION, CONFIG, CARD = (
    "tokenizer.json",
    "preprocessor.json",
    "generation.json",
    "config.json",
    "README.md",
)
_MOST_NAMED = 5  # mismatches that one message spells out


def load_model(source: Source, *, device: torch.device, dtype: torch.dtype) -> MultimodalTransformer:
    """Build the model without memory, check every tensor against the header, then take the weights in.

    Raises:
        ModelError: tensors missing or unexpected, shapes that differ (each named with both), memory too small,
            a file that changed since its header was read.
    """
    with torch.device("meta"):
        model = MultimodalTransformer(source.config)
    state = _state(model)
    _check_tensors(source, state)
    try:
        with safe_open(source.weights, framework="pt") as file:
            loaded = {
                name: file.get_tensor(source.tensors[name].name).reshape(own.shape).to(device, _kept(own, dtype))
                for name, own in state.items()
            }
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be read ({source.weights}, {shown(str(error))}); try again") from error
    model.load_state_dict(loaded, assign=True, strict=False)
    if source.config.text.head == "tied":
        model.head.projection.weight = model.text.tokens.weight
    return model.eval().requires_grad_(False)


def _state(model: MultimodalTransformer) -> dict[str, Tensor]:
    """Return what a checkpoint holds: all but a tied head's second name."""
    state = dict(model.state_dict(keep_vars=True))
    if model.config.text.head == "tied":
        del state["head.projection.weight"]
    return state


def _kept(own: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if own.is_floating_point() else own.dtype


def _check_tensors(source: Source, state: Mapping[str, Tensor]) -> None:
    problems = [f"{name!r} is missing" for name in state if name not in source.tensors]
    problems += [f"{shown(info.name)} is unexpected" for name, info in source.tensors.items() if name not in state]
    for name, own in state.items():
        info = source.tensors.get(name)
        if info is not None and _core(info.shape) != _core(own.shape):
            problems.append(f"{shown(info.name)} has shape {list(info.shape)}, the config needs {list(own.shape)}")
    if problems:
        named = "; ".join(problems[:_MOST_NAMED])
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise ModelError(f"weights and config do not fit ({source.weights}, {named}{more}); use a matching pair")
    wanted, present = (
        sum(own.numel() * 4 for own in state.values()),
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )
    if wanted > present:
        raise ModelError(f"the model needs more memory than there is ({wanted} bytes, {present}); use a larger machine")


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without leading ones, which some checkpoints carry for the batch."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def load_tokenizer(folder: Path, override: str | None = None) -> Tokenizer | None:
    """Return the folder's tokenizer, or the one `override` names; None where the folder has none."""
    if override is not None:
        return Tokenizer.load(override)
    return Tokenizer.load(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None


def load_preprocessing(source: Source) -> Preprocessing:
    """Return the folder's image preprocessing; without one, that of a new model.

    Raises:
        ModelError: the file is broken, or makes images of a size that the model cannot read.
    """
    path = source.folder / PREPROCESSOR
    if not path.exists():
        return default_preprocessing(source.config)
    found = Preprocessing.from_json(read_json(path))
    try:
        source.config.image_shape(found.height, found.width)
    except ConfigError as error:
        raise ModelError(f"preprocessing and config do not fit ({path}): {error}") from error
    return found


def default_preprocessing(config: ModelConfig) -> Preprocessing:
    """Return the preprocessing of a new model: EfficientNet-Lite's own for its tower, else pixels from -1 to 1."""
    size = config.vision.image_size
    if config.vision.kind == "efficientnet_lite0":
        return Preprocessing(height=size, width=size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Preprocessing(height=size, width=size, mean=(0.5,) * 3, std=(0.5,) * 3)


def load_generation(source: Source) -> GenerationOptions:
    """Return the folder's defaults for generation, or the general ones."""
    path = source.folder / GENERATION
    try:
        return GenerationOptions.from_json(read_json(path)) if path.exists() else GenerationOptions()
    except UsageError as error:
        raise ModelError(f"{path}: {error}") from error


def save_checkpoint(
    folder: Path,
    model: MultimodalTransformer,
    *,
    tokenizer: Tokenizer | None,
    preprocessing: Preprocessing,
    generation: GenerationOptions,
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write our folder format; matrices in `dtype`, vectors (norms, biases, batch statistics) in float32."""
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.dim() > 1 else torch.float32).contiguous()
        for name, tensor in _state(model).items()
    }
    config = {"format": "mmt", "format_version": FORMAT_VERSION, **model.config.to_json()}
    writers: dict[str, Callable[[Path], object]] = {
        CONFIG: partial(Path.write_bytes, data=json_bytes(config)),
        PREPROCESSOR: partial(Path.write_bytes, data=json_bytes(preprocessing.to_json())),
        GENERATION: partial(Path.write_bytes, data=json_bytes(generation.to_json())),
        CARD: partial(Path.write_text, data=card, encoding="utf-8"),
    }
    if tokenizer is not None:
        writers[TOKENIZER] = tokenizer.save
    writers[WEIGHTS] = partial(save_file, tensors, metadata={"format": "pt"})
    write_folder(folder, writers)


def load_vision(model: MultimodalTransformer, path: Path, rules: Rules) -> None:
    """Take a vision tower's weights from a file of another project, strictly.

    Args:
        model: its tower is filled in place.
        path: a `.safetensors` file, or a PyTorch state dict, which is read without running any of its code.
        rules: how the file's names become ours.

    Raises:
        ModelError: the file is missing or unreadable, or names or shapes do not fit the tower.
    """
    given = _read_state(path)
    mapped = {ours: given[theirs] for theirs, ours in map_names(given, rules).items()}
    own = {name: tensor for name, tensor in _state(model).items() if name.startswith("vision.")}
    for name in sorted(set(own) | set(mapped)):
        here, there = own.get(name), mapped.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = " and ".join("missing" if t is None else str(list(t.shape)) for t in (there, here))
            raise ModelError(f"vision weights and tower do not fit ({name}, {shapes}); use a matching pair")
    model.load_state_dict(mapped, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"the vision weights are missing ({path}, found no such file); give another path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in read_header(path).tensors}
        given = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a pickle can fail in any way
        reason = shown(str(error))
        raise ModelError(f"the vision weights cannot be read ({path}, {reason}); give another file") from error
    if not isinstance(given, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in given.items()):
        raise ModelError(f"the vision weights are no map of tensors ({path}, {shown(given)}); give a state dict")
    return given
