"""Which images go through the model together, and how many.

Only images of like shape and with prompts of like length share a batch: so batching changes no caption, and nothing is
padded. Where shapes differ (tiles, prompts of their own), images wait in line for others of their kind, and still leave
in the order in which they came.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol, TypeVar

WINDOW = 4  # batches that are looked through for images of one kind


class Waiting(Protocol):
    """An image in line; `kind` is None where there is nothing to caption any more."""

    kind: Hashable | None


W = TypeVar("W", bound=Waiting)


def next_batch(line: Sequence[W], size: int) -> list[W]:
    """Return the first image of the line that is to be captioned, and those of its kind that go with it."""
    first = next((entry for entry in line if entry.kind is not None), None)
    return [] if first is None else [entry for entry in line if entry.kind == first.kind][:size]


def is_full(line: Sequence[Waiting], size: int) -> bool:
    """Say whether nothing is gained by waiting for more images: a batch is whole, or the line long enough."""
    waiting = sum(entry.kind is not None for entry in line)
    return waiting >= size and (len(next_batch(line, size)) >= size or waiting >= WINDOW * size)


def ready(line: list[W]) -> Iterator[W]:
    """Take from the front of the line what needs no captioning any more."""
    while line and line[0].kind is None:
        yield line.pop(0)
