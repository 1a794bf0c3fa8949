"""Model references: one string → the files of a checkpoint. No torch, unless the weights are pickled."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families import family_of
from mmt_cli.checkpoint.families.base import Family
from mmt_cli.checkpoint.folder import CONFIG, Folder, Weights, weight_files
from mmt_cli.checkpoint.header import TensorInfo, read_header
from mmt_cli.checkpoint.hub import blob_sha256, fetch, fetch_headers, is_hub_id
from mmt_cli.checkpoint.keymap import Origin, map_names
from mmt_cli.errors import ConfigError, ModelError, UsageError, shown
from mmt_cli.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mmt_cli.checkpoint.hub_headers import RemoteHeader

GENERATION_CONFIG = "generation_config"
BUNDLED = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How hub ids are resolved.

    Attributes:
        revision: branch, tag or commit; the repository's `main` by default.
        offline: ask nobody, take what the cache holds.
        progress: draw bars on stderr where it is a terminal.
        note: told in one line when the hub is away and the cached copy is taken.
    """

    revision: str | None = None
    offline: bool = False
    progress: bool = False
    note: Callable[[str], object] | None = None

    @property
    def asking(self) -> dict[str, Any]:
        """The same as arguments of `fetch`."""
        return {"revision": self.revision, "offline": self.offline, "progress": self.progress, "note": self.note}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a checkpoint's files lie, and what they say before any weight is read.

    Attributes:
        name: of the model, for records.
        folder: its files.
        weights: those that hold the tensors.
        raw_config: the content of `config.json`.
        generation_config: the content of `generation_config.json`; None where there is none.
        family: whose names and habits it has.
        config: the model it describes.
        infos: what the files say of each tensor, by its name there.
        origins: where each tensor of the model comes from, by our name.
        metadata: of the weights' headers.
        pickled: the tensors themselves, where the format has no header to read alone.
    """

    name: str
    folder: Folder
    weights: Weights
    raw_config: dict[str, Any]
    generation_config: dict[str, Any] | None
    family: Family
    config: ModelConfig
    infos: dict[str, TensorInfo]
    origins: dict[str, Origin]
    metadata: dict[str, str]
    pickled: "Mapping[str, Tensor] | None" = field(default=None, repr=False)

    @property
    def habits(self) -> dict[str, Any]:
        """The content of `config.json`; of Hugging Face's with that of `generation_config.json` under that name."""
        if self.family.native:
            return self.raw_config
        return {**self.raw_config, GENERATION_CONFIG: self.generation_config}

    def fingerprint(self) -> str:
        """Return `name@` and 12 hex digits of the sha256 of the weights, or of their shards' sorted hashes."""
        import hashlib

        digests = [blob_sha256(path) or _sha256(path) for path in self.weights.files]
        if len(digests) > 1:
            digests = [hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()]
        return f"{self.name}@{digests[0][:12]}"


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that ship with the package."""
    return sorted(config.parent.name for config in BUNDLED.glob("*/config.json"))


def open_reference(reference: str | Path, hub: HubOptions | None = None, *, headers_alone: bool = False) -> Source:
    """Find a checkpoint: a bundled name, a folder, a `.safetensors` file with its `config.json` beside it, a hub id.

    Args:
        reference: one of these.
        hub: how hub ids are resolved.
        headers_alone: leave a hub's weights where they are; the tensors cannot be read then.

    Raises:
        ModelError: nothing is there, or config or header are broken or belong to no known family.
        UsageError: a revision of something that has none.
    """
    hub = hub or HubOptions()
    headers: Mapping[Path, RemoteHeader] = {}
    if headers_alone and _means_hub(str(reference)):
        snapshot = fetch_headers(str(reference), **hub.asking)
        path, name, headers = snapshot.folder, str(reference).partition("/")[2], snapshot.headers
    else:
        path, name = locate(reference, hub)
    folder = Folder(path if path.is_dir() else path.parent)
    raw_config = folder.read_json(CONFIG)
    if raw_config is None:
        raise ModelError(f"a file is missing ({folder.path / CONFIG}, found no such file); give a checkpoint folder")
    family = family_of(raw_config)
    told = {file: remote.sha256 for file, remote in headers.items()}
    weights = (
        weight_files(folder, elsewhere=told) if path.is_dir() else Weights(format="safetensors", files={path: None})
    )
    infos, metadata, pickled = _read_weights(weights, headers)
    try:
        config = family.config_from_hf(raw_config, infos.keys())
    except ConfigError as error:
        raise ModelError(f"{folder.path / CONFIG}: {error}") from error
    return Source(
        name=name,
        folder=folder,
        weights=weights,
        raw_config=raw_config,
        generation_config=None if family.native else folder.read_json(f"{GENERATION_CONFIG}.json"),
        family=family,
        config=config,
        infos=infos,
        origins=map_names(infos, family.rules(config), family.layouts),
        metadata=metadata,
        pickled=pickled,
    )


def locate(reference: str | Path, hub: HubOptions) -> tuple[Path, str]:
    """Return the folder or weights file that a reference means, and the model's name.

    Raises:
        ModelError: there is none.
        UsageError: a revision of something that has none.
    """
    name = str(reference)
    if _means_hub(name):
        return fetch(name, **hub.asking), name.partition("/")[2]
    if hub.revision is not None:
        raise UsageError(f"only hub ids have revisions (--revision {hub.revision}, model {shown(name)}); leave it out")
    path = BUNDLED / name if name in bundled_names() else Path(reference)
    if not os.path.exists(path):  # noqa: PTH110 — Path.exists() raises where a name is too long
        known = ", ".join(bundled_names()) or "none"
        raise ModelError(
            f"unknown model ({shown(name)}, bundled: {known}); "
            "give one of these, a folder, a .safetensors file or a hub id like org/name"
        )
    if not path.is_dir() and path.suffix != ".safetensors":
        raise ModelError(f"no model file ({shown(name)}, a folder or .safetensors is expected); give one of these")
    return path, path.resolve().name if path.is_dir() else path.stem


def _means_hub(reference: str) -> bool:
    return reference not in bundled_names() and is_hub_id(reference)


def _read_weights(
    weights: Weights, headers: "Mapping[Path, RemoteHeader]"
) -> "tuple[dict[str, TensorInfo], dict[str, str], Mapping[str, Tensor] | None]":
    """Return what all files say of their tensors, their metadata, and the tensors where there is no header."""
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    pickled: dict[str, Tensor] = {}
    for path in weights.files:
        if weights.format == "safetensors":
            header = headers[path].header if path in headers else read_header(path)
            found = header.tensors
            metadata |= header.metadata
        else:
            from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos

            tensors = map_pickle(path)
            found = {info.name: info for info in pickle_infos(path, tensors)}
            pickled |= tensors
        weights.check(path, found.keys())
        twice = infos.keys() & found.keys()
        if twice:
            raise ModelError(f"two shards hold one tensor ({shown(min(twice))}, {path}); fetch them again")
        infos |= found
    return infos, metadata, pickled if weights.format == "pytorch" else None


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
