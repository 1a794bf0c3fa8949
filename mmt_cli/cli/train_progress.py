"""What `mmt train` shows on stderr: a live line on a terminal, else a line now and then."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mmt_cli.cli import console
from mmt_cli.cli.tables import quantity

if TYPE_CHECKING:
    from rich.progress import Progress

    from mmt_cli.training.events import Evaluated, Event, Noted, Started, Stepped, Stopped
    from mmt_cli.training.images import Prepared

_FIGURES = {  # of an evaluation, in the order shown
    "cider": "CIDEr-D {:.1f}",
    "bleu4": "BLEU-4 {:.1f}",
    "perplexity": "perplexity {:.2f}",
    "loss": "loss {:.3f}",
    "masked_text": "masked text {:.3f}",
    "masked_image": "masked image {:.3f}",
    "accuracy": "accuracy {:.1f} %",
}


class TrainProgress:
    """Shows a run's events; nothing at all when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Progress | None = None
        self._tenths = 0  # of the features, as last told
        self._best = ""  # figures of the best checkpoint

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
            "Stopped": self._stopped,
            "Noted": self._noted,
        }
        handlers[type(event).__name__](event)  # type: ignore[operator]

    def _note(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(console.printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            console.note(line)

    def _started(self, event: "Started") -> None:
        self._steps, self._unit = event.steps, event.unit
        self._note(
            f"{event.train_count:,} training {event.unit}, {event.val_count:,} validation {event.unit}, "
            f"{quantity(event.parameters)} parameters ({quantity(event.trainable)} trained), {event.steps:,} steps"
        )
        if event.done:
            self._note(f"going on behind step {event.done:,}")
        if self._live:
            self._bar = _bar()
            self._task = self._bar.add_task("", total=event.steps, completed=event.done, figures="")
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
        parts = "".join(f"  {name.replace('_', ' ')} {value:.3f}" for name, value in event.parts.items())
        figures = f"loss {event.loss:.3f}{parts}  {event.per_s:.0f} {self._unit}/s"
        shown = f"{figures}  {event.memory / 2**30:.1f} GiB{self._best}"
        if self._bar:
            self._bar.update(self._task, completed=event.step, figures=shown)
        elif event.logged:
            self._note(f"step {event.step}/{self._steps}  {figures}")

    def _evaluated(self, event: "Evaluated") -> None:
        scores = event.scores
        mark = "  (best, saved)" if event.best else ""
        figures = [text.format(scores.figures[name]) for name, text in _FIGURES.items() if name in scores.figures]
        if event.best:
            self._best = f"  best {figures[0]}"
        if "cider" in scores.intervals:
            figures[0] += " ({:.1f} to {:.1f})".format(*scores.intervals["cider"])
        self._note(f"step {event.step}: {'  '.join(figures)}{mark}")
        for key, caption in scores.samples.items():
            self._note(f"    {Path(key).name}: {caption}")

    def _stopped(self, event: "Stopped") -> None:
        if not event.wished:
            self._note(f"step {event.step}: no new best any more; the run ends")

    def _noted(self, event: "Noted") -> None:
        self._note(f"mmt: {event.text}")


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # On a narrow terminal the last column loses its end.
    figures = TextColumn("{task.fields[figures]}")
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(), figures)
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
