"""Captions many images: reading ahead, batches, failures that do not stop the rest, seeds, counts.

Knows no command line, no files and no terminal: records go to a `Sink`.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmt_cli.captioning.batching import WINDOW, is_full, next_batch, ready
from mmt_cli.captioning.job import CaptionerLike, RunOptions, Sink, Stopping, Tally
from mmt_cli.captioning.reading import ReadAhead
from mmt_cli.captioning.sources import Item
from mmt_cli.captioning.writers import Record
from mmt_cli.errors import ImageError, TooManyFailuresError, UsageError, is_out_of_memory

if TYPE_CHECKING:
    from mmt_cli.captioning.captioner import Caption
    from mmt_cli.inputs.preprocess import Picture

_PATIENCE = 0.1  # seconds to wait for a list that comes slowly before an incomplete batch is captioned


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    picture: "Picture"
    thumbnail: bytes | None
    seconds: float


@dataclass(kw_only=True)
class _Entry:
    """An image in line: `kind` is None once it has its captions or its error."""

    item: Item
    prompt: str | None
    loaded: _Loaded | None = None
    kind: Hashable | None = None
    captions: "Sequence[Caption]" = ()
    gains: Sequence[float] | None = None
    error: ImageError | None = None
    seconds: float = 0.0


def caption_images(
    captioner: CaptionerLike,
    items: Iterable[Item],
    options: RunOptions,
    *,
    model: Callable[[], str],
    sink: Sink,
    tally: Tally,
    stopping: Stopping | None = None,
) -> None:
    """Caption all items and hand over their records in order, each batch's as soon as it is done.

    Args:
        captioner: what captions a batch.
        items: what to caption; only a few batches of them are held at a time.
        options: how.
        model: names the model in records; asked after the first batch, so that a slow answer delays no caption.
        sink: takes the records.
        tally: is counted up, and right also when this raises.
        stopping: may end the run after any batch.

    Raises:
        UsageError: the prompt does not fit the model.
        TooManyFailuresError: more than `options.max_failures` items failed. What is up to the first one too many,
            whatever the batch size, has its record.
    """
    captioner.encode_prompt(options.prompt)
    run = _Run(captioner, items, options, model=model, sink=sink, tally=tally)
    try:
        while run.more():
            with stopping.busy() if stopping else contextlib.nullcontext():
                run.batch()
            if stopping and stopping.requested:
                tally.stopped = True
                break
    finally:
        run.close()


def item_seed(seed: int, path: str) -> int:
    """Return the seed of one item's draws, from 0 to 2^63 - 1: a hash of the run's seed and the item's path alone."""
    digest = hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Run:
    """A line of images between the threads that read and the sink."""

    def __init__(
        self,
        captioner: CaptionerLike,
        items: Iterable[Item],
        options: RunOptions,
        *,
        model: Callable[[], str],
        sink: Sink,
        tally: Tally,
    ) -> None:
        self.captioner = captioner
        self.options = options
        self.model = model
        self.sink = sink
        self.tally = tally
        self.tally.batch_size = 1 if options.stream else options.batch_size
        self.line: list[_Entry] = []
        self.ended = False  # nothing more is to be read
        self.failures = 0  # of what is in line or written
        ahead = 1 if options.stream else 2 * options.batch_size + options.workers
        self.reading = ReadAhead(items, self._load, workers=options.workers, ahead=ahead)

    def close(self) -> None:
        self.reading.close()
        self.tally.waited = self.reading.waited

    def more(self) -> bool:
        """Fill the line until a batch can go; say whether there is anything in it."""
        while not self.ended and not is_full(self.line, self.tally.batch_size):
            # Failures before the first image that is to be captioned need not wait for it.
            if len(self.line) >= WINDOW * self.tally.batch_size:
                break
            try:
                taken = self.reading.take(_PATIENCE if self.line else None)
            except TimeoutError:
                break
            if taken is None:
                self.ended = True
                break
            self.line.append(self._enter(*taken))
            if self.options.max_failures is not None and self.failures > self.options.max_failures:
                self.ended = True
        return bool(self.line)

    def batch(self) -> None:
        """Caption one batch, and write what has its turn.

        Raises:
            TooManyFailuresError: a record too many has an error.
        """
        self._hand_over()  # failures need not wait for a caption
        batch = next_batch(self.line, self.tally.batch_size)
        if batch:
            self._caption(batch)
            self._hand_over()

    def _hand_over(self) -> None:
        """Write what has its turn."""
        if self.line and self.line[0].kind is not None:
            return
        try:
            for entry in ready(self.line):
                self._write(entry)
        finally:
            self.sink.commit()

    def _load(self, item: Item) -> _Loaded | ImageError:
        """Read one image; called in threads."""
        start = time.perf_counter()
        try:
            image = self.captioner.open(item.open(), max_pixels=self.options.max_pixels)
            picture = self.captioner.prepare(image)
            thumbnail = self.options.thumbnail(image) if self.options.thumbnail else None
        except ImageError as error:
            return error
        except MemoryError:
            return _out_of_memory("to decode the image")
        return _Loaded(picture=picture, thumbnail=thumbnail, seconds=time.perf_counter() - start)

    def _enter(self, item: Item, loaded: _Loaded | ImageError) -> _Entry:
        entry = _Entry(item=item, prompt=self.options.prompt if item.prompt is None else item.prompt)
        if isinstance(loaded, ImageError):
            entry.error = loaded
        else:
            entry.loaded, entry.seconds = loaded, loaded.seconds
            try:
                entry.kind = ("picture", self.captioner.likeness(loaded.picture, entry.prompt))
            except UsageError as error:
                if item.prompt is None:
                    raise
                entry.error = ImageError("unsupported", f"{item.path}: {error}")
        self.failures += entry.error is not None
        return entry

    def _caption(self, batch: Sequence[_Entry]) -> None:
        """Caption a batch; one that does not fit into memory stays in line, and all later ones are half as large."""
        start = time.perf_counter()
        try:
            self._generate(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) > 1:
                self.tally.batch_size = max(1, len(batch) // 2)
                return
            batch[0].error = _out_of_memory("to caption the image")
            self.failures += 1
        finally:
            seconds = time.perf_counter() - start
            self.tally.captioned += seconds
        for entry in batch:
            entry.kind = None
            entry.seconds += seconds / len(batch)

    def _generate(self, batch: Sequence[_Entry]) -> None:
        pictures = [entry.loaded.picture for entry in batch if entry.loaded]
        prompts = [entry.prompt for entry in batch]
        seeds = [item_seed(self.options.seed, entry.item.path) for entry in batch]
        generation = self.options.generation
        if self.options.stream:
            found = [[self._stream(batch[0], pictures[0], seeds[0])]]
        else:
            found = [
                list(item)
                for item in self.captioner.generate(pictures, prompt=prompts, options=generation, seeds=seeds)
            ]
        gains = self.options.gains(pictures, found, prompts) if self.options.gains else [None] * len(batch)
        for entry, captions, gain in zip(batch, found, gains, strict=True):
            entry.captions, entry.gains = captions, gain

    def _stream(self, entry: _Entry, picture: "Picture", seed: int) -> "Caption":
        pieces = self.captioner.stream(picture, prompt=entry.prompt, options=self.options.generation, seed=seed)
        while True:
            try:
                self.sink.piece(entry.item, next(pieces))
            except StopIteration as end:
                caption: Caption = end.value
                return caption

    def _write(self, entry: _Entry) -> None:
        if entry.error is None and self.options.keep:
            try:
                self.options.keep(entry.item, [self._around(caption.text) for caption in entry.captions])
            except ImageError as error:
                entry.error = error
        self.tally.failed += entry.error is not None
        self.tally.done += entry.error is None
        self.sink.write(entry.item, self._records(entry), entry.loaded.thumbnail if entry.loaded else None)
        limit = self.options.max_failures
        if limit is not None and self.tally.failed > limit:
            counts = f"{self.tally.failed} failed, --max-errors {limit}"
            raise TooManyFailuresError(f"stopped early ({counts}); mend what is named above or allow more")

    def _records(self, entry: _Entry) -> list[Record]:
        blank = Record(path=entry.item.path, prompt=entry.prompt, ms=entry.seconds * 1000, model=self.model())
        if entry.error is not None:
            return [dataclasses.replace(blank, error=entry.error)]
        ranked = self.options.generation.num_captions > 1
        gains: Sequence[float | None] = entry.gains or [None] * len(entry.captions)
        return [
            dataclasses.replace(
                blank,
                caption=self._around(caption.text),
                tokens=caption.tokens,
                logprob=caption.logprob,
                finish_reason=caption.finish_reason,
                rank=rank if ranked else None,
                image_gain=gain,
            )
            for rank, (caption, gain) in enumerate(zip(entry.captions, gains, strict=True), 1)
        ]

    def _around(self, text: str) -> str:
        return f"{self.options.prefix}{text}{self.options.suffix}"


def _out_of_memory(what: str) -> ImageError:
    return ImageError("out_of_memory", f"there is not enough memory {what}; free some or use a smaller image")
