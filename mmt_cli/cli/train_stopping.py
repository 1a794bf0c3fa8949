"""Ctrl-C and SIGTERM while a model trains: the first has the run saved after the step in hand, a second ends it."""

import signal
from types import FrameType
from typing import Self

from mmt_cli.cli.outcome import EndedBySignal
from mmt_cli.training.stop import StopWish, StopWished

_NOTHING = "nothing new was there to save"


class TrainStopping:
    """Makes signals a wish to stop; a context that takes both over and gives them back at its end."""

    def __init__(self) -> None:
        self.wish = StopWish()
        self._signal = signal.SIGTERM

    def end(self, saved: str) -> None:
        """End the process as the signal asks.

        Raises:
            EndedBySignal: with this text.
        """
        raise EndedBySignal(self._signal, saved)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, StopWished):
            raise EndedBySignal(self._signal, _NOTHING) from None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.wish.made:
            raise EndedBySignal(number, "stopped at once; what was saved before is there")
        self._signal = signal.Signals(number)
        self.wish.make()
