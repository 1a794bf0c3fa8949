"""Checkpoints from a Hugging Face hub: the few files a model needs, into the cache that all programs share.

`huggingface_hub` is imported inside the functions, since only hub ids need it. It reads the environment at its import:
`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the others hold as it documents them.
"""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mmt_cli.checkpoint.folder import CONFIG, INDEX, WEIGHTS_NAMES, Folder, preferred_weights, read_index, weight_files
from mmt_cli.checkpoint.hub_errors import AwayError, explained, hushed, told
from mmt_cli.checkpoint.hub_headers import RemoteHeader, range_header
from mmt_cli.errors import ModelError, UsageError, shown

# What a model can need besides its weights; never code, and no chat template, which the families write themselves.
_SMALL = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor.json",
    "generation.json",
)
_SHARD = re.compile(r"(pytorch_)?model[-_]\d{1,6}[-_]of[-_]\d{1,6}\.(safetensors|bin)")
_ID = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = 10  # how long the hub may take to answer the first question


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files of one commit in the cache, and the headers of those weights that are not there."""

    folder: Path
    headers: dict[Path, RemoteHeader] = field(default_factory=dict)


def is_hub_id(reference: str) -> bool:
    """Say whether a model reference can be a hub id: `org/name`, and no path that exists or names a weights file.

    The characters are those that huggingface_hub's `validate_repo_id` allows.
    """
    if not _ID.fullmatch(reference) or "--" in reference or ".." in reference:
        return False
    return not reference.endswith((".git", ".safetensors")) and not os.path.lexists(reference)


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
    note: Callable[[str], object] | None = None,
) -> Path:
    """Return the folder with the files of a hub repository that a model needs, fetched where they are not cached.

    Weights are fetched in one format, safetensors if there is one, and last: a snapshot that has them is complete.

    Args:
        repo_id: `org/name`, as `is_hub_id` takes it.
        revision: branch, tag or commit; the repository's `main` by default.
        offline: ask nobody, take what the cache holds. `HF_HUB_OFFLINE` does the same.
        progress: draw bars on stderr where it is a terminal.
        note: told in one line when the hub is away and the cached copy is taken.

    Raises:
        UsageError: no such revision can exist.
        ModelError: the repository or revision is not there, needs a token or holds no model, the hub cannot be reached
            and the cache holds no complete copy, or the cache cannot be written.
    """
    return _reached(repo_id, _download, revision, offline=offline, progress=progress, note=note).folder


def fetch_headers(
    repo_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
    note: Callable[[str], object] | None = None,
) -> Snapshot:
    """Return what a model's files say of it, without its weights: they stay on the hub where they are not cached.

    Pickled weights have no header to read alone, and are fetched.

    Args:
        repo_id: as for `fetch`, like the others.
        revision: branch, tag or commit.
        offline: ask nobody.
        progress: draw bars.
        note: told when the hub is away.

    Raises:
        UsageError: no such revision can exist.
        ModelError: as for `fetch`, or a header is broken.
    """
    return _reached(repo_id, _peek, revision, offline=offline, progress=progress, note=note)


def _reached(
    repo_id: str,
    bring: Callable[[str, str | None], Snapshot],
    revision: str | None,
    *,
    offline: bool,
    progress: bool,
    note: Callable[[str], object] | None,
) -> Snapshot:
    """Return what `bring` brings from the hub, or the cache's complete copy where it is not to be had."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"no revision ({shown(revision)}, a branch, tag or commit is expected); give one of these")
    with hushed(progress=progress):
        from huggingface_hub import constants

        if offline or constants.HF_HUB_OFFLINE:
            found = _cached(repo_id, revision)
            if found is None:
                raise ModelError(
                    f"no complete copy in the cache ({told(repo_id, revision)}, {constants.HF_HUB_CACHE}); "
                    "fetch it once without --offline and HF_HUB_OFFLINE, or name a folder"
                )
            return Snapshot(folder=found)
        try:
            return bring(repo_id, revision)
        except AwayError as error:
            found = _cached(repo_id, revision)
            if found is None:
                raise ModelError(
                    f"the hub cannot be reached ({told(repo_id, revision)}, {error}); "
                    "check the network, or use --offline with a cached copy, or name a folder"
                ) from error
            if note is not None:
                note(f"the hub cannot be reached ({repo_id}, {error}); taking the cached copy {found.name[:12]}")
            return Snapshot(folder=found)


def blob_sha256(path: Path) -> str | None:
    """Return the sha256 of a large file without reading it, None where the hub's cache does not tell it.

    In the cache a snapshot's entry is a link to a blob that is named by its ETag, which for large files is the sha256.
    The blob may be a link in its turn, to a name that is another hash: only the first link counts.
    """
    try:
        blob = path.parent.resolve() / path.readlink()
    except OSError:  # no link: the file's name says nothing
        return None
    store = blob.parent.resolve()
    if store.name != "blobs" or not path.parent.resolve().is_relative_to(store.parent / "snapshots"):
        return None
    return blob.name if _SHA256.fullmatch(blob.name) else None


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """Return the snapshot that the cache holds for a revision, None where it is missing or has not all its weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo_id, CONFIG, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        weight_files(Folder(folder))
    except ModelError:
        return None
    return folder


def _download(repo_id: str, revision: str | None) -> Snapshot:
    """Bring the cache's copy of a revision up to date: one question for the list, then only what is not there yet."""
    with explained(repo_id, revision):
        listing = _list(repo_id, revision)
        folder = listing.get(CONFIG).parent
        for name in (*_SMALL[1:], listing.weights):
            if name in listing.names:
                listing.get(name)
        for shard in listing.shards(folder):
            listing.get(shard)
    if revision != listing.commit:
        _remember(folder, revision or "main", listing.commit)
    return Snapshot(folder=folder)


def _peek(repo_id: str, revision: str | None) -> Snapshot:
    """Fetch the small files of a revision, and read the headers of its weights where they lie."""
    with explained(repo_id, revision):
        listing = _list(repo_id, revision)
        if listing.weights.startswith("pytorch"):
            return _download(repo_id, revision)
        folder = listing.get(CONFIG).parent
        for name in _SMALL[1:]:
            if name in listing.names:
                listing.get(name)
        if listing.weights.endswith(INDEX):
            listing.get(listing.weights)
        shards = listing.shards(folder) or [listing.weights]
        return Snapshot(
            folder=folder,
            headers={
                folder / shard: range_header(repo_id, shard, listing.commit, folder / shard)
                for shard in shards
                if not (folder / shard).exists()
            },
        )


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The files of one commit of a repository; `weights` holds the model's, or is their index."""

    repo_id: str
    commit: str
    names: frozenset[str]
    weights: str

    def get(self, name: str) -> Path:
        """Fetch one file, unless it is in the cache, and return where it lies."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.repo_id, name, revision=self.commit))

    def shards(self, folder: Path) -> list[str]:
        """Return the files that the index in `folder` names; none where the weights are one file."""
        if not self.weights.endswith(INDEX):
            return []
        shards = list(read_index(Folder(folder), self.weights))
        for shard in shards:
            if shard not in self.names or not _SHARD.fullmatch(shard):
                both = f"{self.repo_id}, {shown(shard)}"
                raise ModelError(f"an index names no shard of its repository ({both}); take another revision")
        return shards


def _list(repo_id: str, revision: str | None) -> _Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, revision=revision, timeout=_SECONDS)
    names = frozenset(sibling.rfilename for sibling in info.siblings or ())
    weights = preferred_weights(names)
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise ModelError(f"no hub's answer ({told(repo_id, revision)}, commit {shown(info.sha)}); check HF_ENDPOINT")
    if CONFIG not in names or weights is None:
        wanted = f"{CONFIG} and one of {', '.join(WEIGHTS_NAMES)}"
        raise ModelError(f"no model in the repository ({told(repo_id, revision)}, looked for {wanted}); take another")
    return _Listing(repo_id=repo_id, commit=info.sha, names=names, weights=weights)


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Write into the cache which commit a name stands for, for the next time without a hub.

    Last of all, so that a download that breaks off leaves the name with the older, whole snapshot.
    """
    ref = folder.parent.parent / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that cannot be written still serves
        ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = ref.with_name(f".{ref.name}.{os.getpid()}")
        temporary.write_text(commit, encoding="ascii")
        temporary.replace(ref)
