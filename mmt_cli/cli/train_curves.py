"""`curves.png` of a run, drawn again as the run goes on, where matplotlib is installed."""

import time
from pathlib import Path

from mmt_cli.cli import console

_PAUSE_S = 60.0  # drawing takes a second


class Curves:
    """Draws; one line says so where that cannot be done, and the run goes on."""

    def __init__(self, out: Path, *, quiet: bool) -> None:
        self._metrics = out / "metrics.jsonl"
        self._quiet = quiet
        self._drawn = time.monotonic()

    def draw_now_and_then(self) -> None:
        """Draw where the last time is a while ago."""
        if time.monotonic() - self._drawn > _PAUSE_S:
            self.draw()

    def draw(self) -> None:
        """Draw what there is."""
        from mmt_cli.training.curves import FILE, draw_curves

        self._drawn = time.monotonic()
        try:
            if not draw_curves(self._metrics):
                self._note(f"{FILE} needs matplotlib; pip install 'mmt-cli[plots]'")
        except OSError as error:
            self._note(f"{FILE} cannot be written ({error.strerror})")

    def _note(self, line: str) -> None:
        if not self._quiet:
            self._quiet = True  # once is enough
            console.note(f"mmt: {line}")
