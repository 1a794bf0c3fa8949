"""A checkpoint folder from which nothing outside is opened, and which weights it holds. No torch."""

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmt_cli.checkpoint.files import MAX_JSON_BYTES, WEIGHTS, strict_json
from mmt_cli.checkpoint.header import MAX_NODES, MAX_TENSORS
from mmt_cli.errors import ModelError, shown

CONFIG = "config.json"
INDEX = ".index.json"
# What weights can be, best first: one file, or the index of a file that is cut into shards.
WEIGHTS_NAMES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)
MAX_INDEX_BYTES = 16 * 1024 * 1024  # 100,000 tensors of 160 bytes each
_MOST_NAMED = 3  # tensors that one message spells out


@dataclass(frozen=True)
class Folder:
    """A folder given by a user, or fetched from the hub; `path` may itself be a link."""

    path: Path

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the folder or below it, None where there is none.

        Args:
            name: relative, with `/` between its parts; it may come from outside, such as a shard's name.

        Raises:
            ModelError: the name or a link leads out of the folder (into the hub cache it belongs to it may), the link
                leads nowhere, or what is there is no regular file.
        """
        if not _is_inner(name):
            raise ModelError(
                f"a file name may lead out of its folder ({shown(name)}, {self.path}); give a path below it"
            )
        path = self.path / name
        try:
            root = self.path.resolve(strict=True)
            target = Path(os.path.realpath(path, strict=True))
            mode = target.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                raise ModelError(f"a link leads to no file ({path}, {path.readlink()}); fetch it again") from error
            return None
        except OSError as error:
            raise ModelError(f"a file cannot be reached ({shown(str(path))}, {error.strerror}); check it") from error
        if not any(target.is_relative_to(allowed) for allowed in (root, *_cache_stores(root))):
            raise ModelError(f"a link leads out of the folder ({path}, to {target}); put the file itself there")
        if not stat.S_ISREG(mode):
            raise ModelError(f"no regular file ({path}, mode {stat.filemode(mode)}); put a file there")
        return path

    def read_bytes(self, name: str, limit: int) -> bytes | None:
        """Return a file's bytes, None where there is none.

        Raises:
            ModelError: as for `file`, it cannot be read, or it holds more than `limit` bytes.
        """
        path = self.file(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise ModelError(f"a file cannot be read ({path}, {error.strerror}); check its permissions") from error
        if len(data) > limit:
            raise ModelError(f"a file is too large ({path}, allowed {limit} bytes); use another")
        return data

    def read_json(self, name: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
        """Return the JSON object in a file, None where there is no such file.

        Raises:
            ModelError: as for `read_bytes`, or not UTF-8, not strict JSON, more than 400,000 lists and objects, or
                no object.
        """
        raw = self.read_bytes(name, limit)
        if raw is None:
            return None
        where = self.path / name
        nodes = raw.count(b"[") + raw.count(b"{")
        if nodes > MAX_NODES:  # sixteen mebibytes of empty lists would take half a gigabyte
            raise ModelError(f"a file is too complex ({where}, {nodes} nodes, allowed {MAX_NODES}); use another")
        try:
            data = strict_json(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"a file cannot be read ({where}, {str(error)[:120]}); mend or replace it") from error
        if not isinstance(data, dict):
            raise ModelError(f"a file holds no JSON object ({where}, found {type(data).__name__}); mend or replace it")
        return data


def _is_inner(name: str) -> bool:
    """Say whether a relative name stays below its folder, spelled in the one plain way."""
    if not name.isprintable() or "\\" in name:  # control bytes, NUL and lone surrogates among them
        return False
    pure = PurePosixPath(name)
    return bool(pure.parts) and str(pure) == name and not pure.is_absolute() and ".." not in pure.parts


def _cache_stores(root: Path) -> tuple[Path, ...]:
    """Return where the entries of a hub snapshot may lead: its repository's blobs, and those that repositories share.

    Layout: `CACHE/models--ORG--NAME/{snapshots/COMMIT/FILE, blobs/ETAG}`, `CACHE/blobs/XX/HASH`.
    """
    repository = root.parent.parent
    if root.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files that hold a checkpoint's weights, in the order of their names.

    `files` gives for each the tensors its index promises; None where there is no index. `told` are the hashes that a
    hub tells of those that it has alone: their sha256, None where it tells none.
    """

    format: Literal["safetensors", "pytorch"]
    files: dict[Path, frozenset[str] | None]
    told: Mapping[Path, str | None] = field(default_factory=dict)

    def check(self, path: Path, names: Collection[str]) -> None:
        """Compare the tensors found in one of the files with those that the index promises.

        Raises:
            ModelError: one of them is only in the index or only in the file.
        """
        promised = self.files[path]
        if promised is None:
            return
        missing, extra = promised.difference(names), set(names) - promised
        told = [f"{_some(found)} {where}" for found, where in ((missing, "missing"), (extra, "not indexed")) if found]
        if told:
            raise ModelError(f"a shard and its index do not fit ({path}, {'; '.join(told)}); fetch both again")


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(shown(name) for name in sorted(names)[:_MOST_NAMED]) + more


def preferred_weights(names: Iterable[str]) -> str | None:
    """Return which of these file names holds a model's weights, or their index: safetensors before pickles."""
    there = set(names)
    return next((name for name in WEIGHTS_NAMES if name in there), None)


def weight_files(folder: Folder, elsewhere: Mapping[Path, str | None] | None = None) -> Weights:
    """Return the files that hold the folder's weights.

    Args:
        folder: a checkpoint's.
        elsewhere: files that count as there, since a hub has them, and the sha256 that it tells of each.

    Raises:
        ModelError: there are none, an index is broken, or a shard it names is missing or outside the folder.
    """
    elsewhere = elsewhere or {}
    there = (name for name in WEIGHTS_NAMES if folder.path / name in elsewhere or folder.file(name) is not None)
    name = preferred_weights(there)
    if name is None:
        raise ModelError(f"no weights in the folder ({folder.path}, looked for {', '.join(WEIGHTS_NAMES)}); add them")
    files: dict[Path, frozenset[str] | None] = {}
    if name.endswith(INDEX):
        for shard, tensors in read_index(folder, name).items():
            path = folder.path / shard if folder.path / shard in elsewhere else folder.file(shard)
            if path is None:
                raise ModelError(f"a shard is missing ({folder.path / shard}, named by {name}); fetch it")
            files[path] = tensors
    else:
        files[folder.path / name] = None
    kind: Literal["safetensors", "pytorch"] = "safetensors" if name.startswith(WEIGHTS) else "pytorch"
    return Weights(format=kind, files=files, told=elsewhere)


def read_index(folder: Folder, name: str) -> dict[str, frozenset[str]]:
    """Return {shard name: the tensors in it} of an index, in the order of the shards' names.

    Shard names are strings that end as the format's files do; whether they stay in the folder is not checked here.

    Raises:
        ModelError: the file is missing or no index, or it names nothing, too many tensors or files of another kind.
    """
    data = folder.read_json(name, MAX_INDEX_BYTES)
    weight_map = None if data is None else data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"no index of weights ({folder.path / name}, weight_map {shown(weight_map)}); fetch it again")
    if len(weight_map) > MAX_TENSORS:
        counts = f"{len(weight_map)} tensors, allowed {MAX_TENSORS}"
        raise ModelError(f"an index is too long ({folder.path / name}, {counts}); use another")
    ending = PurePosixPath(name.removesuffix(INDEX)).suffix
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(ending):
            raise ModelError(f"an index names no {ending} file ({folder.path / name}, {shown(shard)}); fetch it again")
        shards.setdefault(shard, set()).add(tensor)
    return {shard: frozenset(shards[shard]) for shard in sorted(shards)}
