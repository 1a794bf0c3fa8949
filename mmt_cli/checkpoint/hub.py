"""Checkpoints from a Hugging Face hub: the few files a model needs, into the cache that all programs share.

`huggingface_hub` is imported inside the functions, since only hub ids need it. It reads the environment at its import:
`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the others hold as it documents them.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from mmt_cli.checkpoint.folder import CONFIG, INDEX, WEIGHTS_NAMES, Folder, preferred_weights, read_index, weight_files
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


class _AwayError(Exception):
    """The hub cannot be reached or is out of order; its cache may still serve."""


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
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"no revision ({shown(revision)}, a branch, tag or commit is expected); give one of these")
    with _hushed(progress=progress):
        from huggingface_hub import constants

        if offline or constants.HF_HUB_OFFLINE:
            found = _cached(repo_id, revision)
            if found is None:
                raise ModelError(
                    f"no complete copy in the cache ({_what(repo_id, revision)}, {constants.HF_HUB_CACHE}); "
                    "fetch it once without --offline and HF_HUB_OFFLINE, or name a folder"
                )
            return found
        try:
            return _download(repo_id, revision)
        except _AwayError as error:
            found = _cached(repo_id, revision)
            if found is None:
                raise ModelError(
                    f"the hub cannot be reached ({_what(repo_id, revision)}, {error}); "
                    "check the network, or use --offline with a cached copy, or name a folder"
                ) from error
            if note is not None:
                note(f"the hub cannot be reached ({repo_id}, {error}); taking the cached copy {found.name[:12]}")
            return found


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


@contextlib.contextmanager
def _hushed(*, progress: bool) -> Iterator[None]:
    """Keep warnings, hints and log lines off stderr, and bars too unless wanted: what goes wrong is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub.utils import logging as hub_logging
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        level = hub_logging.get_verbosity()
        hide = not progress and not are_progress_bars_disabled()
        if level == logging.WARNING:  # the default; who sets HF_HUB_VERBOSITY wants to see
            hub_logging.set_verbosity(logging.CRITICAL)
        if hide:
            disable_progress_bars()
        try:
            yield
        finally:
            hub_logging.set_verbosity(level)
            if hide:
                enable_progress_bars()


def _what(repo_id: str, revision: str | None) -> str:
    return repo_id if revision is None else f"{repo_id}, revision {revision}"


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


def _download(repo_id: str, revision: str | None) -> Path:
    """Bring the cache's copy of a revision up to date: one question for the list, then only what is not there yet."""
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(repo_id, revision):
        info = HfApi().model_info(repo_id, revision=revision, timeout=_SECONDS)
        commit = info.sha
        names = {sibling.rfilename for sibling in info.siblings or ()}
        weights = preferred_weights(names)
        if commit is None or not _COMMIT.fullmatch(commit):
            raise ModelError(f"no hub's answer ({_what(repo_id, revision)}, commit {shown(commit)}); check HF_ENDPOINT")
        if CONFIG not in names or weights is None:
            wanted = f"{CONFIG} and one of {', '.join(WEIGHTS_NAMES)}"
            raise ModelError(
                f"no model in the repository ({_what(repo_id, revision)}, looked for {wanted}); take another"
            )

        def get(name: str) -> Path:
            return Path(hf_hub_download(repo_id, name, revision=commit))

        folder = get(CONFIG).parent
        for name in (*_SMALL[1:], weights):
            if name in names:
                get(name)
        if weights.endswith(INDEX):
            for shard in read_index(Folder(folder), weights):
                if shard not in names or not _SHARD.fullmatch(shard):
                    told = f"{repo_id}, {shown(shard)}"
                    raise ModelError(f"an index names no shard of its repository ({told}); take another revision")
                get(shard)
    if revision != commit:
        _remember(folder, revision or "main", commit)
    return folder


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


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line with what to do, or `_AwayError` where the cache may help."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    what = _what(repo_id, revision)
    try:
        yield
    except ModelError:
        raise
    except RevisionNotFoundError as error:
        raise ModelError(f"no such revision on the hub ({repo_id}, {revision or 'main'}); check --revision") from error
    except GatedRepoError as error:
        raise ModelError(
            f"the repository asks for consent ({what}); accept its terms on the hub and set HF_TOKEN, or name a folder"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):  # the hub says 401 for what is not there, too
            raise ModelError(
                f"no such model here or on the hub ({what}, status {status}); "
                "check the name, or set HF_TOKEN to a token that may read it"
            ) from error
        raise _AwayError(f"status {status}") from error
    except LocalEntryNotFoundError as error:  # what a download makes of a lost connection
        raise _AwayError(_reason(error.__cause__ or error)) from error
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise _AwayError(_reason(error)) from error
        raise ModelError(
            f"the hub's cache cannot be written ({error.filename or what}, {error.strerror}); "
            "make room, or set HF_HOME to another folder"
        ) from error
    except Exception as error:  # the HTTP library's own, which library depends on huggingface_hub's version
        raise _AwayError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__)
