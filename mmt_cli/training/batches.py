"""Examples → batches, images decoded ahead of the step in threads.

B images, R rows (captions or sentences), C channels, H height, W width, N image tokens, D width.
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

T = TypeVar("T")
Row = tuple[int, ...]  # what is given (begin token, or a whole question with its image), words, end token
BATCHES_AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens; in batches of images, what is to be seen and every caption of each."""

    keys: tuple[str, ...]  # what messages call the images or sentences
    rows: tuple[Row, ...]
    images: Tensor | None = None  # pixels_BCHW or features_BND; None: sentences alone
    image_R: Tensor | None = None  # which image each row describes
    start: int = 1  # ids before the words of each row, which are given and not learned

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Images, and which of them each row describes."""
        assert self.images is not None and self.image_R is not None, "a batch of sentences has no images"
        return self.images, self.image_R

    def one_caption_each(self, generator: torch.Generator) -> "Batch":
        """Return the batch with one caption an image, drawn from `generator`."""
        owners = self.seen[1].tolist()
        places = [[row for row, owner in enumerate(owners) if owner == image] for image in range(len(self.keys))]
        drawn = [mine[int(torch.randint(len(mine), (), generator=generator))] for mine in places]
        return dataclasses.replace(
            self, rows=tuple(self.rows[row] for row in drawn), image_R=torch.arange(len(self.keys))
        )


def tidy(caption: str) -> str:
    """Return the caption without the space that tokenized corpora put before punctuation."""
    return re.sub(r"\s+([.,;:!?])", r"\1", caption)


def encode_captions(
    captions: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    start: Sequence[int],
    end_id: int,
    before: str = "",
) -> list[list[Row]]:
    """Return for each image its captions as rows, cut to the context and one more.

    Args:
        captions: of each image.
        tokenizer: of the model.
        max_length: the model's context, in tokens.
        start: ids before each caption.
        end_id: the one behind it.
        before: text between these ids and each caption.
    """

    def row(caption: str) -> Row:
        ids = [*start, *tokenizer.encode(before + tidy(caption)), end_id]
        return tuple(ids[: max_length + 1])

    return [[row(caption) for caption in image] for image in captions]


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """Return the shuffled order of one epoch, the same for the same seed."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) & 0x7FFF_FFFF)
    return torch.randperm(count, generator=generator).tolist()


def batches(
    build: Callable[[Sequence[int]], Batch], count: int, *, batch_size: int, seed: int, workers: int = 2
) -> Iterator[Batch]:
    """Yield shuffled batches for ever, epoch after epoch.

    Args:
        build: indices of examples → their batch; called in threads.
        count: how many examples there are.
        batch_size: examples a batch; the last one of an epoch may be smaller.
        seed: of the order.
        workers: threads that build.
    """

    def plan() -> Iterator[list[int]]:
        epoch = 0
        while True:
            order = epoch_order(count, epoch, seed)
            yield from (order[start : start + batch_size] for start in range(0, count, batch_size))
            epoch += 1

    yield from _ahead(build, plan(), workers)


def image_batch(
    indices: Sequence[int], load: Callable[[int], tuple[str, Tensor]], rows: Sequence[Sequence[Row]], *, start: int
) -> Batch:
    """Return the batch of these examples, each image with all its captions.

    Args:
        indices: of the examples.
        load: index → key and image (pixels or features).
        rows: of every example of the data set.
        start: ids before the words of each row.
    """
    keys, images = zip(*(load(index) for index in indices), strict=True)
    return Batch(
        keys=keys,
        rows=tuple(row for index in indices for row in rows[index]),
        images=torch.stack(images),
        image_R=torch.tensor([place for place, index in enumerate(indices) for _ in rows[index]]),
        start=start,
    )


def _ahead(work: Callable[[Sequence[int]], T], jobs: Iterator[list[int]], workers: int) -> Iterator[T]:
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
