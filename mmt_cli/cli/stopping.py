"""Ctrl-C and SIGTERM while results are made: the first lets the work in hand be finished, a second ends it at once."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self

from mmt_cli.cli.outcome import EndedBySignal


class Stopping:
    """Holds a signal back while a batch is in work.

    As a context manager it takes the two signals over and gives them back at its end.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._busy = False

    @property
    def requested(self) -> bool:
        """Whether a signal waits for the work to come to its end."""
        return self._signal is not None

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the first signal back as long as this lasts."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def end(self, how_to_go_on: str) -> None:
        """End the process as the signal asks, if one came.

        Raises:
            EndedBySignal: with this text.
        """
        if self._signal is not None:
            raise EndedBySignal(self._signal, how_to_go_on)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None or not self._busy:
            raise EndedBySignal(number, "stopped at once; what is written is whole")
        self._signal = number
