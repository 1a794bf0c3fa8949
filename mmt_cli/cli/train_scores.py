"""What `mmt train --eval-only` shows: a bar while the model writes captions, and then their scores."""

import os
import sys
from typing import TYPE_CHECKING, Self

from mmt_cli.cli.views import Sheet, View
from mmt_cli.training.options import ScoreOptions

if TYPE_CHECKING:
    from rich.progress import Progress

    from mmt_cli.training.scoring import Scored


class ScoreProgress:
    """Counts captioned images on stderr, where that is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show how many images of how many are captioned."""
        if not self._live:
            return
        if self._bar is None:
            self._bar = _bar()
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)


def scores_view(scored: "Scored", options: ScoreOptions) -> View:
    """Return the figures as a table, with their intervals, or as the object that `scores.json` holds."""
    from mmt_cli.training.evaluate import TITLES
    from mmt_cli.training.score_files import summary

    scores = scored.scores
    record = summary(scores, model=scored.model, data=options.val)
    rows = []
    for name, value in scores.figures.items():
        low, high = scores.intervals[name]
        rows.append((TITLES[name], name, f"{value:.2f}", f"{low:.2f} to {high:.2f}"))

    title = f"{scored.model}, {len(scores.captions):,} images of {', '.join(options.val)}"
    table = Sheet(columns=("metric", "name", "score", "95 % interval"), rows=rows, left=2)
    return View(title=title, parts=lambda: [table], records=lambda: [record], record=lambda: record)


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    return Progress(*columns, console=shown, transient=True, redirect_stdout=False, redirect_stderr=False)
