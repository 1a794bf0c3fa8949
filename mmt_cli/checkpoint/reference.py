"""Model references: one string → the files of a checkpoint. No torch."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmt_cli.checkpoint.families import Family, family_of
from mmt_cli.checkpoint.files import WEIGHTS, read_json
from mmt_cli.checkpoint.header import TensorInfo, read_header
from mmt_cli.checkpoint.keymap import map_names
from mmt_cli.errors import ConfigError, ModelError, shown
from mmt_cli.model.config import ModelConfig

BUNDLED = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a checkpoint's files lie, and what they say before any weight is read."""

    name: str
    folder: Path
    weights: Path
    raw_config: dict[str, Any]
    family: Family
    config: ModelConfig
    tensors: dict[str, TensorInfo]  # by our name; the info keeps the file's own name
    metadata: dict[str, str]

    def fingerprint(self) -> str:
        """Return `name@` and the first 12 hex digits of the sha256 of the weights."""
        with self.weights.open("rb") as file:
            return f"{self.name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that ship with the package."""
    return sorted(config.parent.name for config in BUNDLED.glob("*/config.json"))


def open_reference(reference: str | Path) -> Source:
    """Find a checkpoint: a bundled name, a folder, or a `.safetensors` file with its `config.json` beside it.

    Raises:
        ModelError: nothing is there, or config or header are broken or belong to no known family.
    """
    name = str(reference)
    path = BUNDLED / name if name in bundled_names() else Path(reference)
    if not os.path.exists(path):  # noqa: PTH110 — Path.exists() raises where a name is too long
        known = ", ".join(bundled_names()) or "none"
        raise ModelError(
            f"unknown model ({shown(name)}, bundled: {known}); give one of these, a folder or a .safetensors file"
        )
    if not path.is_dir() and path.suffix != ".safetensors":
        raise ModelError(f"no model file ({shown(name)}, a folder or .safetensors is expected); give one of these")
    folder = path if path.is_dir() else path.parent
    weights = path / WEIGHTS if path.is_dir() else path
    raw_config = read_json(folder / "config.json")
    family = family_of(raw_config)
    try:
        config = family.config_from_hf(raw_config)
    except ConfigError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    header = read_header(weights)
    mapped = map_names(header.tensors, family.rules)
    tensors = {ours: header.tensors[theirs] for theirs, ours in mapped.items()}
    display = path.resolve().name if path.is_dir() else path.stem
    return Source(
        name=display,
        folder=folder,
        weights=weights,
        raw_config=raw_config,
        family=family,
        config=config,
        tensors=tensors,
        metadata=header.metadata,
    )
