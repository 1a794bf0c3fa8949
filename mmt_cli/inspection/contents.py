"""What can be looked at: a preset, a checkpoint of a known family, or tensors of which only the names are known.

The families' configs take longer to import than the header of a bare file takes to read, so they wait for their turn.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.folder import CONFIG, Folder, Weights, weight_files
from mmt_cli.checkpoint.header import TensorInfo, read_header
from mmt_cli.errors import ModelError, UsageError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from mmt_cli.checkpoint.reference import HubOptions, Source
    from mmt_cli.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A model as its headers describe it.

    Attributes:
        name: of the model.
        format: the family's name; `safetensors` for tensors alone, `preset` for a shape without weights.
        tensors: a name and what the header says, for each tensor; several may be parts of one of ours.
        known: whether the names are ours.
        metadata: of the weights' headers.
        config: in our own terms where the family is known, else the content of `config.json`; None without one.
        files: that hold the weights; none of a preset.
        told: sha256 of those that only a hub has, as it tells them; None where it tells none.
        source: the checkpoint, where its family is known.
        pickled: the tensors themselves by their names in the file, where the format has no header to read alone.
    """

    name: str
    format: str
    tensors: tuple[tuple[str, TensorInfo], ...]
    known: bool
    metadata: dict[str, str]
    config: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    told: Mapping[Path, str | None] = field(default_factory=dict)
    source: "Source | None" = None
    pickled: "Mapping[str, Tensor] | None" = None

    def need_weights(self, option: str) -> None:
        """Raise UsageError for a preset, whose weights would be random numbers.

        Args:
            option: that reads weights.
        """
        if self.format == "preset":
            raise UsageError(f"a preset has no weights ({option}, model {shown(self.name)}); name a checkpoint")

    def sha256(self) -> dict[str, str]:
        """Return the sha256 of each file of the weights: as a hub or its cache tells it, else by reading.

        Raises:
            ModelError: a hub has the file alone and tells no sha256 of it, or the file cannot be read.
        """
        from mmt_cli.checkpoint.hub import blob_sha256

        untold = [path.name for path, digest in self.told.items() if digest is None]
        if untold:
            raise ModelError(f"the hub tells no sha256 ({shown(self.name)}, {shown(untold[0])}); fetch the file first")
        return {path.name: self.told.get(path) or blob_sha256(path) or _sha256(path) for path in self.files}


def look(
    reference: str,
    settings: Mapping[str, Any] | None = None,
    hub: "HubOptions | None" = None,
    *,
    headers_alone: bool = True,
) -> Contents:
    """Look into a model without reading any weight.

    Args:
        reference: a bundled name, a folder, a `.safetensors` file, a hub id, or `preset:NAME`.
        settings: what to change in the preset, as `preset` takes it; shown as its metadata.
        hub: how hub ids are resolved.
        headers_alone: leave a hub's weights where they are; they can be read only without this.

    Raises:
        ModelError: nothing is there, or config or header are broken.
        UsageError: no such preset, or settings that cannot be changed so.
    """
    bare = None if settings or (hub is not None and hub.revision is not None) else look_at_file(reference)
    if bare is not None:
        return bare
    from mmt_cli.model.presets import referenced_preset

    config = referenced_preset(reference, settings)
    if config is not None:
        return _preset(reference, config, settings or {})
    foreign = _unknown_folder(reference, hub)
    if foreign is not None:
        return _bare(foreign.resolve().name, Folder(foreign), weight_files(Folder(foreign)))
    from mmt_cli.checkpoint.reference import open_reference

    return of_source(open_reference(reference, hub, headers_alone=headers_alone))


def look_at_file(reference: str) -> Contents | None:
    """Return the contents of a `.safetensors` file that nothing beside it explains; None for any other reference.

    Raises:
        ModelError: its header is broken.
    """
    path = Path(reference)
    if not _is_bare(path):
        return None
    return _bare(path.stem, Folder(path.parent), Weights(format="safetensors", files={path: None}))


def of_source(source: "Source") -> Contents:
    """Return the contents of a checkpoint that is open."""
    parts = ((name, source.infos[part]) for name, origin in source.origins.items() for part in origin.names)
    return Contents(
        name=source.name,
        format=source.family.name,
        tensors=tuple(parts),
        known=True,
        metadata=source.metadata,
        config=source.config.to_json(),
        files=tuple(source.weights.files),
        told=source.weights.told,
        source=source,
        pickled=source.pickled,
    )


def _is_bare(path: Path) -> bool:
    """Say whether a reference is a file of tensors that nothing beside it explains."""
    if path.suffix != ".safetensors" or not os.path.isfile(path):  # noqa: PTH113 — Path.is_file raises for long names
        return False
    raw = Folder(path.parent).read_json(CONFIG)
    return raw is None or not _is_known(raw)


def _unknown_folder(reference: str, hub: "HubOptions | None") -> Path | None:
    """Return a folder whose weights belong to no family of ours, None for any other reference."""
    from mmt_cli.checkpoint.reference import bundled_names

    folder = Path(reference)
    if reference in bundled_names() or not os.path.isdir(folder) or (hub is not None and hub.revision):  # noqa: PTH112
        return None
    raw = Folder(folder).read_json(CONFIG)
    return folder if raw is not None and not _is_known(raw) else None


def _is_known(raw_config: Mapping[str, Any]) -> bool:
    from mmt_cli.checkpoint.families import family_of

    try:
        family_of(raw_config)
    except ModelError:
        return False
    return True


def _bare(name: str, folder: Folder, weights: Weights) -> Contents:
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    pickled: dict[str, Tensor] = {}
    for path in weights.files:
        if weights.format == "pytorch":
            from mmt_cli.checkpoint.pickled import map_pickle, pickle_infos

            pickled |= (tensors := map_pickle(path))
            found = {info.name: info for info in pickle_infos(path, tensors)}
        else:
            header = read_header(path)
            found, metadata = header.tensors, metadata | header.metadata
        weights.check(path, found.keys())
        infos |= found
    return Contents(
        name=name,
        format=weights.format,
        tensors=tuple(infos.items()),
        known=False,
        metadata=metadata,
        config=folder.read_json(CONFIG),
        files=tuple(weights.files),
        pickled=pickled if weights.format == "pytorch" else None,
    )


def _preset(reference: str, config: "ModelConfig", settings: Mapping[str, Any]) -> Contents:
    return Contents(
        name=reference,
        format="preset",
        tensors=tuple((info.name, info) for info in _preset_tensors(config)),
        known=True,
        metadata={key: json.dumps(value) for key, value in settings.items()},
        config=config.to_json(),
    )


def _preset_tensors(config: "ModelConfig") -> Iterator[TensorInfo]:
    import torch

    from mmt_cli.model.transformer import MultimodalTransformer

    with torch.device("meta"):
        model = MultimodalTransformer(config)
    # Both iterators give a tensor that has two names, such as a tied head's, once.
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        nbytes = tensor.numel() * tensor.element_size()
        yield TensorInfo(name=name, dtype="F32", shape=tuple(tensor.shape), nbytes=nbytes, path=Path())


def _sha256(path: Path) -> str:
    import hashlib

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the weights cannot be read ({path}, {error.strerror}); check the path") from error
