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
from mmt_cli.training.augment import mirror
from mmt_cli.training.order import START, Job, Position

T = TypeVar("T")
J = TypeVar("J")
Row = tuple[int, ...]  # what is given (begin token, or a whole question with its image), words, end token
BATCHES_AHEAD = 4
KEPT_ROWS = 20_000  # examples; some 40 MB with five captions each


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens; in batches of images, what is to be seen and every caption of each."""

    keys: tuple[str, ...]  # what messages call the images or sentences
    rows: tuple[Row, ...]
    images: Tensor | None = None  # pixels_BCHW or features_BND; None: sentences alone
    image_R: Tensor | None = None  # which image each row describes
    start: int = 1  # ids before the words of each row, which are given and not learned
    after: Position = START  # where the data stand when this batch is done
    problems: tuple[str, ...] = ()  # what could not be read, and was made up for by other images

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


class Rows:
    """The captions of a data set as rows of tokens, encoded when they are asked for; some are kept for the next time.

    Can be used by several threads at once.
    """

    def __init__(
        self, captions: Sequence[Sequence[str]], encode: Callable[[Sequence[Sequence[str]]], list[list[Row]]]
    ) -> None:
        self.captions = captions
        self.encode = encode
        self._kept: dict[tuple[int, bool], list[Row]] = {}

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> list[Row]:
        return self.of(index)

    def of(self, index: int, *, mirrored: bool = False) -> list[Row]:
        """Return the rows of an example's captions; of its mirror image, with "left" and "right" changed over."""
        rows = self._kept.get((index, mirrored))
        if rows is None:
            captions = self.captions[index]
            [rows] = self.encode([[mirror(caption) for caption in captions] if mirrored else captions])
            if len(self._kept) < KEPT_ROWS:
                self._kept[index, mirrored] = rows
        return rows


def batches(build: Callable[[Sequence[int], int], Batch], jobs: Iterator[Job], *, workers: int = 2) -> Iterator[Batch]:
    """Yield the batches of a plan in its order, a few ahead in threads.

    Args:
        build: indices of examples and epoch → their batch; called in threads.
        jobs: what `plan` yields.
        workers: threads that build.
    """

    def work(job: Job) -> Batch:
        return dataclasses.replace(build(job.indices, job.epoch), after=job.after)

    yield from ahead(work, jobs, workers)


def image_batch(loaded: Sequence[tuple[str, Tensor]], rows: Sequence[Sequence[Row]], *, start: int) -> Batch:
    """Return a batch, each image with all its captions.

    Args:
        loaded: key and image (pixels or features) of each example.
        rows: the captions of each example.
        start: ids before the words of each row.
    """
    keys, images = zip(*loaded, strict=True)
    return Batch(
        keys=keys,
        rows=tuple(row for image in rows for row in image),
        images=torch.stack(images),
        image_R=torch.tensor([place for place, image in enumerate(rows) for _ in image]),
        start=start,
    )


def ahead(work: Callable[[J], T], jobs: Iterator[J], workers: int) -> Iterator[T]:
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
