"""Step folders: all of a run at one step, on the disk whole or not at all.

`checkpoints/step-NNNNNN/` is a model that any command reads, and beside it what the run needs to go on: tensors in
`training.safetensors`, or `training/` where several processes hold shares of them; the rest in `training.json`.
`complete.json` comes last and names every file with its size.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmt_cli.checkpoint.files import json_bytes, strict_json
from mmt_cli.errors import ModelError, OutputError, UsageError
from mmt_cli.inputs.printable import printable
from mmt_cli.training.distributed import Team, World
from mmt_cli.training.shards import write_shards

FOLDER = "checkpoints"
SHARDS = "training"
TENSORS, RECORD, METRICS, MARKER = "training.safetensors", "training.json", "metrics.jsonl", "complete.json"
_NAME = re.compile(r"step-(\d{6,12})")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a step folder holds of its run; no tensors where they lie in shares."""

    folder: Path
    step: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    metrics: bytes

    @property
    def tensor_files(self) -> Path:
        """Where the files of the tensors lie."""
        shards = self.folder / SHARDS
        return shards if shards.is_dir() else self.folder


class Checkpoints:
    """The step folders of one run."""

    def __init__(self, out: Path, world: World | None = None) -> None:
        self.folder = out / FOLDER
        self.world = World() if world is None else world

    def whole(self) -> list[Path]:
        """Return the complete step folders, oldest first."""
        found = {step_of(path): path for path in self.folder.glob("step-*") if is_whole(path)}
        return [found[step] for step in sorted(found)]

    @property
    def newest(self) -> Path | None:
        """The newest complete one."""
        return next(reversed(self.whole()), None)

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        *,
        tensors: dict[str, Tensor],
        sharded: bool,
        record: Mapping[str, Any],
        metrics: Path,
    ) -> Path:
        """Write a step folder and return it; one of the same step makes room when the new one is complete.

        Args:
            step: its number.
            write_model: makes the folder that it is given, with a model in it.
            tensors: of the run.
            sharded: whether each process of several writes its shares of them; else the leader writes all.
            record: of the run, as JSON holds it.
            metrics: `metrics.jsonl` as it is so far.

        Raises:
            OSError: the disk has no room, or the folder cannot be written; all others are as they were.
            SafetensorError: the same.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.world.of_leader(lambda: self._temporary(final.name))
        half = temporary / final.name
        try:
            if self.world.leads:
                write_model(half)
            if sharded:
                assert isinstance(self.world, Team), "shares of one process"
                self.world.meet()
                write_shards(tensors, half / SHARDS, self.world)
            if self.world.leads:
                if not sharded:
                    save_file(tensors, half / TENSORS, metadata={"format": "pt"})
                    (half / TENSORS).chmod(0o644)  # safetensors keeps its files to their owner
                (half / RECORD).write_bytes(json_bytes(record))
                shutil.copyfile(metrics, half / METRICS)
                _complete(half, step)
                if final.exists():
                    final.rename(temporary / "older")
                half.rename(final)
                _flush(self.folder)
        finally:
            if self.world.leads:
                shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _temporary(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))

    def prune(self, keep: int, keep_best: int) -> None:
        """Remove all but the newest `keep` complete folders and the `keep_best` with the best scores."""
        folders = self.whole()
        ranks = {folder: _rank(folder) for folder in folders}
        scored = sorted((f for f in folders if ranks[f] is not None), key=lambda f: ranks[f] or 0.0, reverse=True)
        for folder in set(folders) - set(folders[-keep:]) - set(scored[:keep_best]):
            leaving = folder.with_name(f".{folder.name}.old")  # half removed it must not look like one
            folder.rename(leaving)
            shutil.rmtree(leaving)

    def tidy(self) -> None:
        """Finish what runs that were killed have left half done: folders half written or half removed."""
        for left in self.folder.glob(".step-*"):
            for new in left.glob("step-*"):
                if is_whole(new) and not (self.folder / new.name).exists():  # killed as the older one had made room
                    new.rename(self.folder / new.name)
            shutil.rmtree(left, ignore_errors=True)

    def find(self, resume: str | None) -> Path | None:
        """Return the folder that `--resume` means; None: start from the beginning.

        Raises:
            UsageError: it must not be ignored, or is of another run.
            ModelError: it must be there, and is not.
        """
        newest = self.newest
        if resume is None and newest is not None:
            raise UsageError(
                f"the folder holds an earlier run (--out {self.folder.parent}, {newest.name}); "
                "go on with --resume auto, or choose a new one"
            )
        if resume in (None, "auto"):
            return newest
        if resume == "latest":
            if newest is None:
                raise ModelError(f"no complete checkpoint (--resume latest, {self.folder}); start with --resume auto")
            return newest
        return self._named(Path(resume))

    def _named(self, path: Path) -> Path:
        if not is_whole(path):
            raise ModelError(f"no complete checkpoint (--resume {path}, {MARKER} missing or wrong); name another")
        if path.resolve().parent != self.folder.resolve():
            raise UsageError(
                f"the checkpoint is of another run (--resume {path}, --out {self.folder.parent}); "
                f"give its own --out, or start a new run from it with --init {path}"
            )
        return path


def step_of(folder: Path) -> int:
    """Return the step that a folder's name tells, -1 for none."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def _complete(folder: Path, step: int) -> None:
    """Write the marker, when all that it names is on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / MARKER).write_bytes(json_bytes({"step": step, "files": sizes}))
    for path in (folder / MARKER, *filter(Path.is_dir, folder.iterdir()), folder):
        _flush(path)


def is_whole(folder: Path) -> bool:
    """Say whether the folder has its marker, and all files that it names, of their sizes."""
    try:
        files = strict_json((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def read(folder: Path) -> Saved:
    """Return what a complete step folder holds.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return Saved(
            folder=folder,
            step=step_of(folder.resolve()),
            tensors={} if (folder / SHARDS).is_dir() else load_file(folder / TENSORS),
            record=_record(folder),
            metrics=(folder / METRICS).read_bytes(),
        )
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        reason = printable(str(error))[:80]
        raise ModelError(f"the checkpoint cannot be read ({folder}, {reason}); go on with an older one") from error


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def _rank(folder: Path) -> float | None:
    try:
        rank: float | None = _record(folder).get("rank")
    except (OSError, ValueError):
        return None
    return rank


@contextmanager
def disk_errors_named(path: Path, newest: Callable[[], Path | None]) -> Iterator[None]:
    """Turn errors of writing `path` into one that says what is still there.

    Raises:
        OutputError: for whatever the disk did not take.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = error.strerror if isinstance(error, OSError) else None
        reason = told or printable(str(error)).rpartition("error: ")[2]
        last = newest()
        left = "nothing is saved yet" if last is None else f"{last} is whole"
        advice = "start again" if last is None else "go on with --resume auto"
        raise OutputError(
            f"the checkpoint cannot be written ({path}, {reason}; {left}); make room, and {advice}"
        ) from error


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
