"""Examples → batches, images decoded ahead of the step in threads.

B images, R captions, C channels, H height, W width, N image tokens, D width.
"""

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.training.data import Example

T = TypeVar("T")
BATCHES_AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images, or what a frozen tower made of them, and every caption of each."""

    keys: tuple[str, ...]
    images: Tensor  # pixels_BCHW or features_BND
    rows: tuple[tuple[int, ...], ...]  # begin token, caption, end token
    image_R: Tensor  # which image each row describes

    def one_caption_each(self, generator: torch.Generator) -> "Batch":
        """Return the batch with one caption an image, drawn from `generator`."""
        owners = self.image_R.tolist()
        places = [[row for row, owner in enumerate(owners) if owner == image] for image in range(len(self.keys))]
        drawn = [mine[int(torch.randint(len(mine), (), generator=generator))] for mine in places]
        return dataclasses.replace(
            self, rows=tuple(self.rows[row] for row in drawn), image_R=torch.arange(len(self.keys))
        )


def tidy(caption: str) -> str:
    """Return the caption without the space that tokenized corpora put before punctuation."""
    return re.sub(r"\s+([.,;:!?])", r"\1", caption)


def encode_captions(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> list[list[tuple[int, ...]]]:
    """Return for each example its captions as begin token, words, end token; cut to the context and one more."""

    def row(caption: str) -> tuple[int, ...]:
        ids = [tokenizer.bos_id, *tokenizer.encode(tidy(caption)), tokenizer.eos_id]
        return tuple(ids[: max_length + 1])

    return [[row(caption) for caption in example.captions] for example in examples]


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """Return the shuffled order of one epoch, the same for the same seed."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) & 0x7FFF_FFFF)
    return torch.randperm(count, generator=generator).tolist()


def batches(
    rows: Sequence[Sequence[tuple[int, ...]]],
    load: Callable[[int], tuple[str, Tensor]],
    *,
    batch_size: int,
    seed: int,
    workers: int = 2,
) -> Iterator[Batch]:
    """Yield shuffled batches for ever, epoch after epoch, each image with all its captions.

    Args:
        rows: captions of each example, as ids.
        load: index → key and image (pixels or features); called in threads.
        batch_size: images a batch; the last one of an epoch may be smaller.
        seed: of the order.
        workers: threads that load.
    """

    def build(indices: list[int]) -> Batch:
        keys, images = zip(*(load(index) for index in indices), strict=True)
        owners = [place for place, index in enumerate(indices) for _ in rows[index]]
        return Batch(
            keys=keys,
            images=torch.stack(images),
            rows=tuple(row for index in indices for row in rows[index]),
            image_R=torch.tensor(owners),
        )

    def plan() -> Iterator[list[int]]:
        epoch = 0
        while True:
            order = epoch_order(len(rows), epoch, seed)
            yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))
            epoch += 1

    yield from _ahead(build, plan(), workers)


def _ahead(work: Callable[[list[int]], T], jobs: Iterator[list[int]], workers: int) -> Iterator[T]:
    """Yield `work(job)` in order, a few jobs ahead in threads."""
    executor = ThreadPoolExecutor(workers, thread_name_prefix="mmt-data")
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(executor.submit(work, job))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
