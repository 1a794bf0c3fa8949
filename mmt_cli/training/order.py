"""In which order a data set is gone through: a function of seed and epoch alone, so that any run can find its place."""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

Order = Callable[[int], Iterator[int]]  # epoch → indices of all examples, each once
_CHUNK = 65_536  # indices that are Python numbers at a time


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is in its data: `taken` examples of epoch `epoch`, by all processes together."""

    epoch: int = 0
    taken: int = 0


START = Position()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's share of a batch, and where the data stand after it."""

    indices: tuple[int, ...]
    epoch: int
    after: Position


def mixed_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that differs wherever one of the numbers does; the same on every machine."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def shuffled(count: int, *, seed: int, epoch: int) -> Iterator[int]:
    """Yield the indices below `count`, all equally likely at every place."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    order = torch.randperm(count, generator=generator)
    for place in range(0, count, _CHUNK):
        yield from order[place : place + _CHUNK].tolist()


def buffered(lengths: Sequence[int], *, size: int, seed: int, epoch: int) -> Iterator[int]:
    """Yield the indices of all examples, near each other as they lie in their files.

    Files come in a drawn order, each from its start to its end, through a buffer of `size` examples: each one leaves
    from a drawn place, and the next of the file takes it. So a file is read once from one end to the other, within a
    window of `size` examples, where `shuffled` would jump through all files.

    Args:
        lengths: examples of each file.
        size: of the buffer, in examples; 1 keeps the order within files.
        seed: of the order.
        epoch: counted from 0.
    """
    draw = random.Random(mixed_seed(seed, epoch))  # noqa: S311 — no secret
    starts = [0, *itertools.accumulate(lengths)]
    files = [range(start, end) for start, end in itertools.pairwise(starts)]
    draw.shuffle(files)
    buffer: list[int] = []
    for index in itertools.chain.from_iterable(files):
        if len(buffer) < size:
            buffer.append(index)
        else:
            place = draw.randrange(size)
            yield buffer[place]
            buffer[place] = index
    if size > 1:
        draw.shuffle(buffer)
    yield from buffer


def plan(
    order: Order, count: int, *, batch_size: int, start: Position = START, rank: int = 0, world: int = 1
) -> Iterator[Job]:
    """Yield the batches of one process for ever: every example is in one batch of one process in each epoch.

    The batches of all processes are cut from one order, so what is left of an epoch does not depend on how many they
    are. No process is ever without an example: a rest of fewer than `world` joins the batch before it, and where there
    is none the one after it.

    Args:
        order: of each epoch.
        count: how many examples there are.
        batch_size: examples a process and batch; the last one of an epoch may be smaller, or up to one larger.
        start: where to begin.
        rank: of this process.
        world: how many processes there are.
    """
    epoch, taken = start.epoch, start.taken
    whole = batch_size * world
    carried: list[int] = []
    while True:
        coming = itertools.islice(order(epoch), taken, None)
        while taken < count:
            left = count - taken
            size = left if left < whole + world and left != whole else whole
            chunk, carried = [*carried, *itertools.islice(coming, size)], []
            taken += size
            if len(chunk) < world:
                carried = chunk
                continue
            yield Job(indices=tuple(chunk[rank::world]), epoch=epoch, after=Position(epoch=epoch, taken=taken))
        epoch, taken = epoch + 1, 0


def batches_per_epoch(count: int, batch_size: int, world: int = 1) -> int:
    """Return into how many batches `plan` cuts an epoch that it begins."""
    whole, rest = divmod(count, batch_size * world)
    return max(1, whole + (rest >= world))
