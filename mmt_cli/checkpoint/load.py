"""Weights into a model, and a model into a folder."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmt_cli.checkpoint.families.own import FORMAT_VERSION
from mmt_cli.checkpoint.files import WEIGHTS, json_bytes, write_folder
from mmt_cli.checkpoint.folder import CONFIG
from mmt_cli.checkpoint.header import read_header
from mmt_cli.checkpoint.keymap import Origin, Rules, map_names
from mmt_cli.checkpoint.parts import CARD, GENERATION, PREPROCESSOR, TOKENIZER
from mmt_cli.checkpoint.pickled import map_pickle
from mmt_cli.checkpoint.reference import Source
from mmt_cli.checkpoint.tensors import DTYPES, PickledFiles, SafetensorsFiles, take
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.transformer import MultimodalTransformer

_MOST_NAMED = 5  # mismatches that one message spells out


def load_model(source: Source, *, device: torch.device, dtype: torch.dtype) -> MultimodalTransformer:
    """Build the model without memory, check every tensor against the files, then take the weights in.

    Raises:
        ModelError: tensors missing or unexpected, shapes that differ (each named with both), memory too small,
            a file that changed since its header was read.
    """
    with torch.device("meta"):
        model = MultimodalTransformer(source.config)
    state = model.own_state()
    _check_tensors(source, state)
    _check_memory(state, dtype)
    files = SafetensorsFiles(source.infos) if source.pickled is None else PickledFiles(source.pickled)
    with files as tensors:
        loaded = {
            name: take(tensors, source.origins[name], own, _kept(own, dtype), source.infos).to(device)
            for name, own in state.items()
        }
    model.load_state_dict(loaded, assign=True, strict=False)
    model.tie()
    return model.eval().requires_grad_(False)


def stored_dtype(source: Source) -> torch.dtype | None:
    """Return the dtype that most of a checkpoint's numbers are stored in, None where that is no common one."""
    sizes: dict[str, int] = {}
    for info in source.infos.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return DTYPES[most] if most in ("F32", "BF16", "F16") else None


def _kept(own: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if own.is_floating_point() else own.dtype


def mismatches(source: Source, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return what of a checkpoint does not fit the model that its config describes.

    Args:
        source: the checkpoint.
        state: the model's tensors, which may be without memory.

    Returns:
        The name of each tensor (ours where it is missing, else the file's) and what is wrong with it.
    """
    problems = [(name, "is missing") for name in state if name not in source.origins]
    problems += [(o.names[0], "is unexpected") for name, o in source.origins.items() if name not in state]
    for name, own in state.items():
        origin = source.origins.get(name)
        if origin is not None and not _fits(source, origin, tuple(own.shape)):
            shapes = " + ".join(str(list(source.infos[part].shape)) for part in origin.names)
            wanted = list(own.shape[::-1] if origin.transposed else own.shape)
            problems.append((origin.names[0], f"has shape {shapes}, the config needs {wanted}"))
    return problems


def _check_tensors(source: Source, state: Mapping[str, Tensor]) -> None:
    problems = [f"{shown(name)} {what}" for name, what in mismatches(source, state)]
    if problems:
        named = "; ".join(problems[:_MOST_NAMED])
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise ModelError(f"weights and config do not fit ({source.folder.path}, {named}{more}); use a matching pair")


def _fits(source: Source, origin: Origin, own: tuple[int, ...]) -> bool:
    """Say whether the parts of a tensor make one of shape `own`; leading ones, kept for the batch, do not count."""
    shapes = [_core(source.infos[name].shape) for name in origin.names]
    if len(shapes) == 1:
        return shapes[0] == _core(own[::-1] if origin.transposed else own)
    rows, inner = own[0], own[1:]
    counts = [1 if shape == inner else shape[0] if shape[1:] == inner else None for shape in shapes]
    return None not in counts and sum(filter(None, counts)) == rows


def _check_memory(state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raise ModelError where the model cannot fit into this machine."""
    wanted = sum(own.numel() * _kept(own, dtype).itemsize for own in state.values())
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > present:
        raise ModelError(f"the model needs more memory than there is ({wanted} bytes, {present}); use a larger machine")


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


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
        for name, tensor in model.own_state().items()
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
    mapped = {ours: given[origin.names[0]] for ours, origin in map_names(given, rules).items()}
    own = {name: tensor for name, tensor in model.own_state().items() if name.startswith("vision.")}
    for name in sorted(set(own) | set(mapped)):
        here, there = own.get(name), mapped.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = " and ".join("missing" if t is None else str(list(t.shape)) for t in (there, here))
            raise ModelError(f"vision weights and tower do not fit ({name}, {shapes}); use a matching pair")
    model.load_state_dict(mapped, strict=False)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"the vision weights are missing ({path}, found no such file); give another path")
    if path.suffix != ".safetensors":
        return map_pickle(path)
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in header.tensors}
    except (OSError, SafetensorError) as error:
        reason = shown(str(error))
        raise ModelError(f"the vision weights cannot be read ({path}, {reason}); give another file") from error
