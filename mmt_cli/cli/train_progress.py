"""What `mmt train` shows on stderr: a live line on a terminal, else a line now and then."""

import os
import sys
from typing import TYPE_CHECKING, Self

from mmt_cli.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress

    from mmt_cli.training.images import Prepared
    from mmt_cli.training.loop import Evaluated, Event, Started, Stepped

SAMPLES = 3  # captions shown at each evaluation


class TrainProgress:
    """Shows a run's events; nothing at all when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Progress | None = None
        self._tenths = 0  # of the features, as last told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, event: "Event") -> None:
        """Show what happened."""
        if self._quiet:
            return
        handlers = {
            "Started": self._started,
            "Prepared": self._prepared,
            "Stepped": self._stepped,
            "Evaluated": self._evaluated,
        }
        handlers[type(event).__name__](event)  # type: ignore[operator]

    def _note(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(console.printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            console.note(line)

    def _started(self, event: "Started") -> None:
        self._steps = event.steps
        self._note(
            f"{event.train_images:,} training images, {event.val_images:,} validation images, "
            f"{event.parameters / 1e6:.1f} M parameters ({event.trainable / 1e6:.1f} M trained), {event.steps:,} steps"
        )
        if self._live:
            self._bar = _bar()
            self._task = self._bar.add_task("", total=event.steps, figures="")
            self._features = self._bar.add_task("", total=None, figures="features", visible=False)
            self._bar.start()

    def _prepared(self, event: "Prepared") -> None:
        if self._bar:
            self._bar.update(self._features, completed=event.done, total=event.total, visible=event.done < event.total)
        if event.done == event.total:
            how = "read from" if event.found else "kept in"
            self._note(f"features of {event.total:,} images {how} {event.file}")
        elif not self._bar and event.done * 10 // event.total > self._tenths:
            self._note(f"features {event.done:,}/{event.total:,}")
        self._tenths = event.done * 10 // event.total

    def _stepped(self, event: "Stepped") -> None:
        figures = f"loss {event.loss:.3f}  {event.images_per_s:.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=event.step, figures=figures)
        elif event.logged:
            self._note(f"step {event.step}/{self._steps}  {figures}")

    def _evaluated(self, event: "Evaluated") -> None:
        scores = event.scores
        mark = "  (best, saved)" if event.best else ""
        self._note(f"step {event.step}: CIDEr {scores.cider:.1f}  BLEU-4 {scores.bleu[3]:.1f}{mark}")
        for caption in scores.captions[:SAMPLES]:
            self._note(f"    {caption}")


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
