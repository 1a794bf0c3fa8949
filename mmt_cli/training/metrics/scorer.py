"""What every metric is to whoever reports it."""

from collections.abc import Sequence
from typing import Protocol

Row = tuple[float, ...]  # what one image adds to the sums that figures are made of


class Scorer(Protocol):
    """A metric against fixed references, prepared once.

    A figure of any set of images follows from the sum of their rows: of all images for the corpus, of one for its own
    score, of images drawn at random for how far the figure may be off.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Of its figures, as `metrics.jsonl` has them."""

    def rows(self, candidates: Sequence[str]) -> list[Row]:
        """Return a row an image, for one candidate an image."""

    def figures(self, total: Sequence[float]) -> tuple[float, ...]:
        """Return the figure of each name from the sum of rows."""


def mean(total: Sequence[float]) -> tuple[float, ...]:
    """Return the means where a row holds an image's scores and, last, a 1."""
    *sums, count = total
    return tuple(value / count for value in sums)
