"""Looks for all that is wrong with a checkpoint, where loading it would stop at the first thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmt_cli.captioning.prompts import check_prompt, find_prompting
from mmt_cli.checkpoint.families import family_of
from mmt_cli.checkpoint.families.base import Family
from mmt_cli.checkpoint.folder import CONFIG, INDEX, WEIGHTS_NAMES, Folder, Weights, preferred_weights, read_index
from mmt_cli.checkpoint.header import TensorInfo, read_header
from mmt_cli.checkpoint.keymap import Origin, map_names, unknown_names
from mmt_cli.checkpoint.load import mismatches
from mmt_cli.checkpoint.parts import load_generation, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos
from mmt_cli.checkpoint.reference import GENERATION_CONFIG, HubOptions, Source, locate
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.inputs.prompt import Layout
from mmt_cli.inspection.contents import Contents
from mmt_cli.inspection.findings import Finding, Findings
from mmt_cli.inspection.values import pieces
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer

_REALS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_REALS |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        model: its name.
        format: of its family; None where that is unknown.
        tensors: how many there are in the files that could be read.
        findings: what is wrong; nothing where the checkpoint is sound.
    """

    model: str
    format: str | None
    tensors: int
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        return {
            "model": self.model,
            "format": self.format,
            "sound": not self.findings,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(kw_only=True)
class _Read:
    """What the files of the weights hold, as far as they could be read."""

    infos: dict[str, TensorInfo]
    metadata: dict[str, str]
    pickled: dict[str, torch.Tensor]
    whole: bool = True


def check(reference: str, hub: HubOptions | None = None, *, tokenizer: str | None = None) -> Report:
    """Check a checkpoint: headers, shards, tensors against the config, numbers, tokenizer, image processor.

    Args:
        reference: a bundled name, a folder, a `.safetensors` file or a hub id, which is fetched whole.
        hub: how hub ids are resolved.
        tokenizer: one to check in place of the checkpoint's own.

    Raises:
        ModelError: nothing is there.
        UsageError: it is a preset, whose weights are random numbers.
    """
    if referenced_preset(reference) is not None:
        raise UsageError(f"a preset has no weights (--check, model {shown(reference)}); name a checkpoint")
    path, name = locate(reference, hub or HubOptions())
    folder = Folder(path if path.is_dir() else path.parent)
    findings = Findings()
    raw_config = findings.tried("config", lambda: folder.read_json(CONFIG))
    if raw_config is None and path.is_dir() and not findings:
        findings.add("config", f"{CONFIG} is missing")
    family = None if raw_config is None else findings.tried("config", lambda: family_of(raw_config))
    weights = _weights(path, folder, findings)
    read = _read(weights, findings)
    if raw_config is not None and family is not None:
        generation = None if family.native else findings.tried("generation", partial(_generation, folder))
        config = findings.tried("config", lambda: _config(family, raw_config, read))
        if config is not None:
            source = Source(
                name=name,
                folder=folder,
                weights=weights,
                raw_config=raw_config,
                generation_config=generation,
                family=family,
                config=config,
                infos=read.infos,
                origins=_origins(family, config, read, findings),
                metadata=read.metadata,
                pickled=read.pickled if weights.format == "pytorch" else None,
            )
            _check_tensors(source, read, findings)
            _check_parts(source, tokenizer, findings)
    _check_values(name, read, weights, findings)
    found = None if family is None else family.name
    return Report(model=name, format=found, tensors=len(read.infos), findings=tuple(findings))


def _generation(folder: Folder) -> dict[str, Any] | None:
    return folder.read_json(f"{GENERATION_CONFIG}.json")


def _config(family: Family, raw_config: Mapping[str, Any], read: _Read) -> ModelConfig:
    return family.config_from_hf(raw_config, read.infos.keys())


def _weights(path: Path, folder: Folder, findings: Findings) -> Weights:
    """Return the files of the weights that are there."""
    if not path.is_dir():
        return Weights(format="safetensors", files={path: None})
    files: dict[Path, frozenset[str] | None] = {}
    there = []
    for known in WEIGHTS_NAMES:
        with findings.noting("shards"):
            there += [known] if folder.file(known) is not None else []
    name = preferred_weights(there)
    if name is None:
        findings.add("shards", f"no weights, looked for {', '.join(WEIGHTS_NAMES)}")
    elif name.endswith(INDEX):
        for shard, tensors in (findings.tried("shards", lambda: read_index(folder, name)) or {}).items():
            with findings.noting("shards"):
                if (file := folder.file(shard)) is None:
                    findings.add("shards", f"{shown(shard)} is missing, the index has {len(tensors)} tensors in it")
                else:
                    files[file] = tensors
    else:
        files[folder.path / name] = None
    return Weights(format="pytorch" if (name or "").startswith("pytorch") else "safetensors", files=files)


def _read(weights: Weights, findings: Findings) -> _Read:
    read = _Read(infos={}, metadata={}, pickled={}, whole=not any(f.part == "shards" for f in findings))
    for path in weights.files:
        before = len(findings)
        with findings.noting("header"):
            if weights.format == "pytorch":
                read.pickled |= (tensors := map_pickle(path))
                found = {info.name: info for info in pickle_infos(path, tensors)}
            else:
                header = read_header(path)
                found, read.metadata = header.tensors, read.metadata | header.metadata
            for name in sorted(read.infos.keys() & found.keys()):
                findings.add("shards", f"is in two shards, the second is {path.name}", name)
            read.infos |= found
            with findings.noting("shards"):
                weights.check(path, found.keys())
        read.whole &= len(findings) == before
    return read


def _origins(family: Family, config: ModelConfig, read: _Read, findings: Findings) -> dict[str, Origin]:
    rules = family.rules(config)
    unknown = unknown_names(read.infos, rules, family.layouts)
    for name in unknown:
        findings.add("tensors", "is unexpected", name)
    known = [name for name in read.infos if name not in set(unknown)]
    return findings.tried("tensors", lambda: map_names(known, rules, family.layouts)) or {}


def _check_tensors(source: Source, read: _Read, findings: Findings) -> None:
    """Compare names, shapes and dtypes with those of the model that the config describes."""
    if not read.whole:  # whatever is missing is so because its file is
        return
    with torch.device("meta"):
        state = MultimodalTransformer(source.config).own_state()
    if source.origins:
        for name, what in mismatches(source, state):
            findings.add("tensors", what, name)
    told = next((source.raw_config[key] for key in _DTYPE_KEYS if source.raw_config.get(key) in _REALS.values()), None)
    for name, own in state.items():
        origin = source.origins.get(name)
        for info in () if origin is None else (source.infos[part] for part in origin.names):
            real = _REALS.get(info.dtype)
            if own.is_floating_point() and real is None:
                findings.add("tensors", f"holds whole numbers ({info.dtype}), the model real ones", info.name)
            elif own.is_floating_point() and told is not None and real != told:
                findings.add("tensors", f"is stored as {real}, the config says {told}", info.name)


def _check_values(name: str, read: _Read, weights: Weights, findings: Findings) -> None:
    """Look for numbers that are none, or infinite."""
    pickled = read.pickled if weights.format == "pytorch" else None
    contents = Contents(name=name, format="", tensors=(), known=False, metadata={}, pickled=pickled)
    for info in read.infos.values():
        if info.dtype not in _REALS:
            continue
        nan = infinite = 0
        with findings.noting("values"):
            for piece_N in pieces(contents, info):
                x_N = piece_N.float() if info.dtype.startswith("F8") else piece_N
                if not bool(torch.isfinite(x_N).all()):
                    nan += int(torch.isnan(x_N).sum())
                    infinite += int(torch.isinf(x_N).sum())
        if nan or infinite:
            counts = [f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "Inf")) if count]
            findings.add("values", f"{' and '.join(counts)} among {info.parameters:,} numbers", info.name)


def _check_parts(source: Source, tokenizer: str | None, findings: Findings) -> None:
    """Compare tokenizer, image processor and defaults of decoding with the model's config."""
    config = source.config
    words = findings.tried("tokenizer", lambda: load_tokenizer(source, tokenizer))
    if words is not None:
        if words.vocab_size > config.text.vocab_size:
            sizes = f"has ids up to {words.vocab_size - 1}, the model's vocabulary ends at {config.text.vocab_size - 1}"
            findings.add("tokenizer", f"the tokenizer {sizes}")
        with findings.noting("tokenizer"):
            layout = Layout(tokens=config.num_image_tokens)
            check_prompt(find_prompting(source, config, words, None)(words, "A photo.", layout), config)
    preprocessing = findings.tried("images", lambda: load_preprocessing(source))
    side = config.vision.image_size
    # The other towers are convolutions, to which one size is as good as another.
    if preprocessing is not None and config.vision.kind == "patches":
        height, width = preprocessing.height, preprocessing.width
        if (height, width) != (side, side):
            sides = f"makes images of {height} x {width} pixels, the vision tower is made for {side} x {side}"
            findings.add("images", f"the image processor {sides}")
    findings.tried("generation", lambda: load_generation(source))


def raise_if_broken(report: Report) -> None:
    """Raise ModelError, which ends a run with exit code 5, where a check found something."""
    if report.findings:
        count = len(report.findings)
        findings = f"{count} finding{'s' if count > 1 else ''}"
        raise ModelError(f"the checkpoint is not sound ({shown(report.model)}, {findings}); mend it or fetch it again")
