"""A wish to stop, from a signal: granted between two steps, or at once where nothing can be lost."""

from collections.abc import Iterator
from contextlib import contextmanager


class StopWished(BaseException):
    """Leaves what is `interruptible`; no part of the program but the one that asked for it may hold it back."""


class StopWish:
    """Whether the run shall stop; a signal handler may set it at any moment."""

    def __init__(self) -> None:
        self.made = False
        self._interruptible = False

    def make(self) -> None:
        """Wish to stop.

        Raises:
            StopWished: what goes on can be done again at no loss.
        """
        self.made = True
        if self._interruptible:
            raise StopWished

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a wish end what is done inside, which must leave everything as it was.

        Raises:
            StopWished: there was a wish before, or there is one now.
        """
        self._interruptible = True
        try:
            if self.made:
                raise StopWished
            yield
        finally:
            self._interruptible = False
