"""Captions many images: batches, failures that do not stop the rest, seeds, counts. Knows no command line."""

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmt_cli.captioning.sources import Item
from mmt_cli.captioning.writers import Record
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, TooManyFailuresError, is_out_of_memory

if TYPE_CHECKING:
    from mmt_cli.captioning.captioner import Caption
    from mmt_cli.inputs.preprocess import Picture


class CaptionerLike(Protocol):
    """What a run needs of a `Captioner`."""

    def encode_prompt(self, prompt: str | None) -> object:
        """Raise `UsageError` if the prompt does not fit."""

    def read(self, image: str | bytes, *, max_pixels: int) -> "Picture":
        """Return the image as the model reads it, or raise `ImageError`."""

    def generate(
        self, pictures: "Sequence[Picture]", *, prompt: str | None, options: GenerationOptions, seeds: Sequence[int]
    ) -> "Sequence[Sequence[Caption]]":
        """Caption one batch."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to caption many images.

    Attributes:
        prompt: the captions' first words, or the question.
        generation: how to decode.
        batch_size: images the model reads at a time; changes no caption in float32.
        max_pixels: images with more are refused before they are decoded.
        max_failures: stop at the first failure beyond this many; None never stops.
        seed: start of every random draw.
    """

    prompt: str | None
    generation: GenerationOptions
    batch_size: int
    max_pixels: int
    max_failures: int | None
    seed: int


@dataclass(kw_only=True)
class Tally:
    """Counts of one run, kept up to date while it goes."""

    done: int = 0
    failed: int = 0


def caption_images(
    captioner: CaptionerLike,
    items: Iterable[Item],
    options: RunOptions,
    *,
    model: Callable[[], str],
    write: Callable[[Record], None],
    tally: Tally,
) -> None:
    """Caption all items and hand over their records in order, each batch's as soon as it is done.

    Args:
        captioner: what captions a batch.
        items: what to caption; only one batch of them is held at a time.
        options: how.
        model: names the model in records; asked after the first batch, so that a slow answer delays no caption.
        write: takes one record.
        tally: is counted up, and right also when this raises.

    Raises:
        UsageError: the prompt does not fit the model.
        TooManyFailuresError: more than `options.max_failures` items failed. What is up to the first one too many,
            whatever the batch size, has its record.
    """
    captioner.encode_prompt(options.prompt)
    for batch in _batches(items, options.batch_size):
        start = time.perf_counter()
        allowed = None if options.max_failures is None else options.max_failures - tally.failed
        outcomes = _caption_batch(captioner, batch, options, allowed)
        ms = (time.perf_counter() - start) * 1000 / len(outcomes)
        for item, outcome in outcomes:
            tally.failed += isinstance(outcome, ImageError)
            tally.done += not isinstance(outcome, ImageError)
            write(_record(item, outcome, prompt=options.prompt, ms=ms, model=model()))
        if options.max_failures is not None and tally.failed > options.max_failures:
            counts = f"{tally.failed} failed, --max-errors {options.max_failures}"
            raise TooManyFailuresError(f"stopped early ({counts}); mend what is named above or allow more")


def item_seed(seed: int, path: str) -> int:
    """Return the seed of one item's draws, from 0 to 2^63 - 1: a hash of the run's seed and the item's path alone."""
    digest = hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _caption_batch(
    captioner: CaptionerLike, batch: Sequence[Item], options: RunOptions, allowed: int | None
) -> list[tuple[Item, "Caption | ImageError"]]:
    """Return what became of each item of a batch, up to the first failure beyond `allowed`."""
    read: list[tuple[Item, Picture | ImageError]] = []
    failures = 0
    for item in batch:
        picture = _read(captioner, item, options.max_pixels)
        read.append((item, picture))
        failures += isinstance(picture, ImageError)
        if allowed is not None and failures > allowed:
            break
    readable = [(item, picture) for item, picture in read if not isinstance(picture, ImageError)]
    captions = iter(_generate(captioner, readable, options))
    return [(item, picture if isinstance(picture, ImageError) else next(captions)) for item, picture in read]


def _read(captioner: CaptionerLike, item: Item, max_pixels: int) -> "Picture | ImageError":
    try:
        return captioner.read(item.open(), max_pixels=max_pixels)
    except ImageError as error:
        return error
    except MemoryError:
        return _out_of_memory("to decode the image")


def _generate(
    captioner: CaptionerLike, batch: "Sequence[tuple[Item, Picture]]", options: RunOptions
) -> "list[Caption | ImageError]":
    """Caption one batch, in halves if it does not fit into memory: batching changes no caption."""
    if not batch:
        return []
    try:
        found = captioner.generate(
            [picture for _, picture in batch],
            prompt=options.prompt,
            options=options.generation,
            seeds=[item_seed(options.seed, item.path) for item, _ in batch],
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return [captions[0] for captions in found]
    if len(batch) == 1:
        return [_out_of_memory("to caption the image")]
    middle = len(batch) // 2
    return _generate(captioner, batch[:middle], options) + _generate(captioner, batch[middle:], options)


def _out_of_memory(what: str) -> ImageError:
    return ImageError("out_of_memory", f"there is not enough memory {what}; free some or use a smaller image")


def _record(item: Item, outcome: "Caption | ImageError", *, prompt: str | None, ms: float, model: str) -> Record:
    if isinstance(outcome, ImageError):
        return Record(path=item.path, prompt=prompt, ms=ms, model=model, error=outcome)
    return Record(
        path=item.path,
        caption=outcome.text,
        prompt=prompt,
        tokens=outcome.tokens,
        logprob=outcome.logprob,
        finish_reason=outcome.finish_reason,
        ms=ms,
        model=model,
    )
