"""What a run leaves on the disk: the best model, step folders under `checkpoints/`, and `metrics.jsonl`."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.reference import open_reference
from mmt_cli.checkpoint.save_hf import HuggingFaceFolder
from mmt_cli.device import DTYPES
from mmt_cli.errors import UsageError
from mmt_cli.training.card import ModelCard
from mmt_cli.training.checkpoints import METRICS, Checkpoints, Saved, disk_errors_named, read
from mmt_cli.training.distributed import World
from mmt_cli.training.evaluate import Scores
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.score_files import write_scores
from mmt_cli.training.state import Progress

_LOCK = ".lock"


class RunFolder:
    """The output folder of one run; of several processes the leader alone writes, but for its shares."""

    def __init__(self, options: TrainOptions, world: World) -> None:
        """Find what `--resume` means; nothing is written.

        Raises:
            UsageError: the folder holds something else, or a run that is not to be gone on with.
            ModelError: a checkpoint is missing or cannot be read.
        """
        self.folder = options.out
        self.options = options
        self.world = world
        self.metrics = self.folder / METRICS
        self.checkpoints = Checkpoints(self.folder, world)
        if (self.folder / "config.json").exists() and not self.metrics.exists():
            raise UsageError(
                f"the folder holds another checkpoint (--out {self.folder}, config.json); choose a new one"
            )
        found = self.checkpoints.find(options.resume)
        self.saved: Saved | None = None if found is None else read(found)

    def begin(self, captioner: Captioner, card: ModelCard) -> None:
        """Read what training leaves as it is: the source may be gone when the run ends."""
        self.card = card
        source = captioner.source
        self.hugging_face = None if source is None or source.family.native else HuggingFaceFolder(source)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder for this run alone; `metrics.jsonl` is as it was at the step that the run goes on from.

        Raises:
            UsageError: another run writes to it.
            OutputError: it cannot be written.
        """
        self.world.meet()  # all have read what is there
        if not self.world.leads:
            yield
            return
        with self._named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(lock)
            with self._named(self.folder):
                self.checkpoints.tidy()
                for half in self.folder.glob(f".{self.folder.name}.*"):
                    shutil.rmtree(half, ignore_errors=True)
                self._begin_metrics()
            yield
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run writes there (--out {self.folder}, {_LOCK}); wait, or choose a new one"
            ) from None
        except OSError:  # some network file systems know no locks
            return

    def _begin_metrics(self) -> None:
        temporary = self.metrics.with_name(f".{METRICS}")
        temporary.write_bytes(b"" if self.saved is None else self.saved.metrics)
        temporary.replace(self.metrics)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        if not self.world.leads:
            return
        with self._named(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_best(self, captioner: Captioner, progress: Progress) -> None:
        """Write the folder's own checkpoint, in the dtype the user asked for."""
        if not self.world.leads:
            return
        with self._named(self.folder):
            self._save(self.folder, captioner, progress, self.options.save_dtype)

    def save_scores(self, scores: Scores) -> None:
        """Write what the folder's own checkpoint reached, and each image's share in it, where captions were scored."""
        if self.world.leads and scores.captions:
            with self._named(self.folder):
                model = open_reference(self.folder).fingerprint()
                write_scores(self.folder, scores, model=model, data=self.options.val)

    def save_step(
        self,
        captioner: Captioner,
        progress: Progress,
        *,
        tensors: dict[str, Tensor],
        sharded: bool,
        record: Mapping[str, Any],
    ) -> Path:
        """Write `checkpoints/step-NNNNNN`, its model in float32, then remove those that need not be kept."""

        def write_model(folder: Path) -> None:
            self._save(folder, captioner, progress, "float32")

        with self._named(self.checkpoints.folder / f"step-{progress.step:06d}"):
            saved = self.checkpoints.save(
                progress.step, write_model, tensors=tensors, sharded=sharded, record=record, metrics=self.metrics
            )
            if self.world.leads:
                self.checkpoints.prune(self.options.keep, self.options.keep_best)
        return saved

    def _named(self, path: Path) -> AbstractContextManager[None]:
        return disk_errors_named(path, lambda: self.checkpoints.newest)

    def _save(self, folder: Path, captioner: Captioner, progress: Progress, dtype: str) -> None:
        card = self.card.text(progress)
        if self.hugging_face is not None:
            self.hugging_face.save(
                folder, captioner.model, preprocessing=captioner.preprocessing, card=card, dtype=DTYPES[dtype]
            )
            for name in self.hugging_face.absent:  # an earlier run's, which would be taken for this model's
                (folder / name).unlink(missing_ok=True)
            return
        save_checkpoint(
            folder,
            captioner.model,
            tokenizer=captioner.tokenizer,
            preprocessing=captioner.preprocessing,
            generation=captioner.generation,
            card=card,
            dtype=DTYPES[dtype],
        )
