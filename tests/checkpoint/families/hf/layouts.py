"""The same checkpoint as other versions, the hub and other people save it: only files are rewritten.

Each function takes a folder that `build` wrote, and a new folder; the new one holds the same model.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf.layouts_keys import HUB_KEYS, extra_tensors

WEIGHTS = "model.safetensors"
Rewrite = Callable[[Path, Path], Path]


def hub_layout(number: int = 0) -> Rewrite:
    """Rename tensors as one of the layouts on the hub does, see `layouts_keys.HUB_KEYS`; no two names may meet."""

    def rewrite(source: Path, folder: Path) -> Path:
        return _renamed(source, folder, HUB_KEYS[_family(source)][number])

    return rewrite


def legacy_buffers(source: Path, folder: Path) -> Path:
    """Add what older versions saved beside the weights: position ids, causal masks, a second copy of the head."""
    tensors = load_file(source / WEIGHTS)
    config = _json(source / "config.json")
    return _saved(source, folder, tensors | extra_tensors(_family(source), tensors, config))


def sparse_config(source: Path, folder: Path) -> Path:
    """Leave out of config.json all that the classes give by default, as hand-written configs on the hub do."""
    _copied(source, folder)
    config = _json(source / "config.json")
    defaults = transformers.CONFIG_MAPPING[config["model_type"]]().to_dict()
    _write(folder / "config.json", _without_defaults(config, defaults))
    return folder


def rope_theta(source: Path, folder: Path) -> Path:
    """Spell rotary positions as before 5.0: `rope_theta` in place of `rope_parameters`."""
    _copied(source, folder)
    config = _json(source / "config.json")
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["rope_scaling"] = None
    _write(folder / "config.json", config)
    return folder


def preprocessor_only(source: Path, folder: Path) -> Path:
    """Leave only `preprocessor_config.json`, as versions before 5.0 wrote."""
    _copied(source, folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    return folder


def processor_only(source: Path, folder: Path) -> Path:
    """Leave only `processor_config.json`, as 5.x writes; a family without a processor keeps what it has."""
    _copied(source, folder)
    if (folder / "processor_config.json").exists():
        (folder / "preprocessor_config.json").unlink()
    return folder


def old_preprocessor(source: Path, folder: Path) -> Path:
    """Write the image settings as the first versions did: a number as size, no rescaling, a feature extractor."""
    preprocessor_only(source, folder)
    settings = _json(folder / "preprocessor_config.json")
    for key in ("do_rescale", "rescale_factor", "do_convert_rgb"):
        settings.pop(key, None)
    size = settings["size"]
    sides = set(size.values())
    if len(sides) == 1:
        settings["size"] = sides.pop()
    if settings.get("do_center_crop"):
        settings["crop_size"] = settings["crop_size"]["height"]
    settings["feature_extractor_type"] = settings.pop("image_processor_type").replace(
        "ImageProcessor", "FeatureExtractor"
    )
    _write(folder / "preprocessor_config.json", settings)
    return folder


def sharded(source: Path, folder: Path, limit: int = 200_000) -> Path:
    """Split the weights into files of 200 KB with an index."""
    tensors = load_file(source / WEIGHTS)
    return _in_shards(source, folder, tensors, limit, "model-{:05d}-of-{:05d}.safetensors", WEIGHTS, _save_safetensors)


def pickled(source: Path, folder: Path) -> Path:
    """Write `pytorch_model.bin` in place of safetensors."""
    _copied(source, folder)
    (folder / WEIGHTS).unlink()
    torch.save(load_file(source / WEIGHTS), folder / "pytorch_model.bin")
    return folder


def pickled_shards(source: Path, folder: Path, limit: int = 200_000) -> Path:
    """Split the weights into `.bin` files of 200 KB with an index."""
    tensors = load_file(source / WEIGHTS)
    name = "pytorch_model-{:05d}-of-{:05d}.bin"
    return _in_shards(source, folder, tensors, limit, name, "pytorch_model.bin", torch.save)


def bfloat16(source: Path, folder: Path) -> Path:
    """Store the weights as bfloat16 and say so in the config."""
    return _cast(source, folder, torch.bfloat16)


def float16(source: Path, folder: Path) -> Path:
    """Store the weights as float16 and say so in the config, by the older key."""
    return _cast(source, folder, torch.float16)


# Those that any family has; the rest are `hub_layout` (by `HUB_KEYS`), `legacy_buffers` and `rope_theta`.
VARIANTS: dict[str, Rewrite] = {
    "sparse-config": sparse_config,
    "preprocessor-only": preprocessor_only,
    "processor-only": processor_only,
    "sharded": sharded,
    "bin": pickled,
    "bin-shards": pickled_shards,
    "bfloat16": bfloat16,
    "float16": float16,
}


def variants(family: str) -> dict[str, Rewrite]:
    """Return every variant of a family by its name."""
    known = HUB_KEYS.get(family.removesuffix("-siglip"), ())
    layouts = {f"hub-{number}": hub_layout(number) for number in range(len(known))}
    more: dict[str, Rewrite] = {}
    if family in ("git", "blip", "blip-vqa", "vit-gpt2", "trocr", "trocr-vit"):
        more |= {"legacy-buffers": legacy_buffers, "old-preprocessor": old_preprocessor}
    if family in ("smolvlm", "idefics3", "llava", "llava-siglip", "paligemma", "internvl"):
        more["rope-theta"] = rope_theta
    return VARIANTS | layouts | more


def _family(folder: Path) -> str:
    config = _json(folder / "config.json")
    kind = config["model_type"]
    if kind == "vision-encoder-decoder":
        return "vit-gpt2" if config["decoder"]["model_type"] == "gpt2" else "trocr"
    return "blip-vqa" if config["architectures"] == ["BlipForQuestionAnswering"] else kind


def _renamed(source: Path, folder: Path, rules: tuple[tuple[str, str], ...]) -> Path:
    tensors = load_file(source / WEIGHTS)
    renamed = {_by_rules(name, rules): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors), "two tensors would have the same name"
    assert renamed.keys() != tensors.keys(), "the layout is the one of the source"
    return _saved(source, folder, renamed)


def _by_rules(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    return name


def _without_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Drop keys whose value is the default; a part is compared with the defaults of its own model_type."""
    kept = {}
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            kept[key] = {"model_type": value["model_type"]} | _without_defaults(value, _defaults(value["model_type"]))
        elif key in ("model_type", "architectures") or key not in defaults or defaults[key] != value:
            kept[key] = value
    for key, derived in _derived(config).items():
        if kept.get(key) == derived:
            del kept[key]
    return kept


def _derived(config: dict[str, Any]) -> dict[str, Any]:
    """Return what 5.x works out from other keys and writes down, and older versions did not know."""
    if "hidden_size" not in config or "num_attention_heads" not in config:
        return {}
    return {
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "layer_types": ["full_attention"] * config["num_hidden_layers"],
        "pooler_output_size": config["hidden_size"],
    }


def _defaults(model_type: str) -> dict[str, Any]:
    return transformers.AutoConfig.for_model(model_type).to_dict()


def _cast(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    tensors = load_file(source / WEIGHTS)
    _saved(source, folder, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    config = _json(folder / "config.json")
    config.pop("dtype", None)
    config["torch_dtype" if dtype is torch.float16 else "dtype"] = str(dtype).removeprefix("torch.")
    _write(folder / "config.json", config)
    return folder


def _in_shards(
    source: Path,
    folder: Path,
    tensors: dict[str, Tensor],
    limit: int,
    name: str,
    whole: str,
    save: Callable[[dict[str, Tensor], Path], None],
) -> Path:
    _copied(source, folder)
    (folder / WEIGHTS).unlink()
    shards: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if shards[-1] and sum(held.nbytes for held in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][key] = tensor
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = name.format(number, len(shards))
        save(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write(folder / f"{whole}.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    return folder


def _saved(source: Path, folder: Path, tensors: dict[str, Tensor]) -> Path:
    _copied(source, folder)
    _save_safetensors(tensors, folder / WEIGHTS)
    return folder


def _save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _copied(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
