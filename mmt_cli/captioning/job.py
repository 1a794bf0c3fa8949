"""What a run of many images is asked to do, counts, and talks to. No torch."""

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmt_cli.captioning.sources import Item
from mmt_cli.captioning.writers import Record
from mmt_cli.decoding.options import GenerationOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmt_cli.captioning.captioner import Caption
    from mmt_cli.inputs.preprocess import Picture


class CaptionerLike(Protocol):
    """What a run needs of a `Captioner`."""

    def encode_prompt(self, prompt: str | None) -> object:
        """Raise `UsageError` if the prompt does not fit."""

    def open(self, image: str | bytes, *, max_pixels: int) -> "Image":
        """Return the image as a person sees it, or raise `ImageError`."""

    def prepare(self, image: "Image") -> "Picture":
        """Return the image as the model reads it, or raise `ImageError`."""

    def likeness(self, picture: "Picture", prompt: str | None) -> Hashable:
        """Return what must be equal in a batch, or raise `UsageError` if the prompt does not fit."""

    def generate(
        self,
        pictures: "Sequence[Picture]",
        *,
        prompt: Sequence[str | None],
        options: GenerationOptions,
        seeds: Sequence[int],
    ) -> "Sequence[Sequence[Caption]]":
        """Caption one batch."""

    def stream(
        self, picture: "Picture", *, prompt: str | None, options: GenerationOptions, seed: int
    ) -> "Generator[str, None, Caption]":
        """Caption one image in pieces."""


class Sink(Protocol):
    """Where results go."""

    def piece(self, item: Item, text: str) -> None:
        """Take the next piece of a caption that is being written, where the run streams."""

    def write(self, item: Item, records: Sequence[Record], thumbnail: bytes | None) -> None:
        """Take what became of one image: a record, or one for each of its captions."""

    def commit(self) -> None:
        """Make sure of what was written: nothing comes for a while."""


class Stopping(Protocol):
    """Somebody who may want the run to end early."""

    @property
    def requested(self) -> bool:
        """Whether the run is to end as soon as its batch is done."""

    def busy(self) -> AbstractContextManager[object]:
        """Say for how long a batch is in work, which is not to be broken off."""


class Gains(Protocol):
    """Measures what the images say to the captions."""

    def __call__(
        self,
        pictures: "Sequence[Picture]",
        captions: "Sequence[Sequence[Caption]]",
        prompts: Sequence[str | None],
        /,
    ) -> Sequence[Sequence[float]]:
        """Return for each caption how many bits more likely it is with its image than with a blank one."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to caption many images.

    Attributes:
        prompt: the captions' first words, or the question; an item's own goes before it.
        generation: how to decode.
        batch_size: images the model reads at a time at most; changes no caption in float32.
        workers: threads that read images ahead.
        max_pixels: images with more are refused before they are decoded.
        max_failures: stop at the first failure beyond this many; None never stops.
        seed: start of every random draw.
        prefix: stands before each caption.
        suffix: stands behind each caption.
        stream: hand captions over in pieces, one image at a time.
        gains: measures by how many bits an image makes its captions more likely; None does not.
        thumbnail: makes a small picture of an image for the sink; None does not.
        keep: called with an item and its captions before its records are written; an `ImageError` fails the item.
    """

    prompt: str | None
    generation: GenerationOptions
    batch_size: int
    workers: int = 1
    max_pixels: int
    max_failures: int | None
    seed: int
    prefix: str = ""
    suffix: str = ""
    stream: bool = False
    gains: Gains | None = None
    thumbnail: "Callable[[Image], bytes] | None" = None
    keep: Callable[[Item, Sequence[str]], None] | None = None


@dataclass(kw_only=True)
class Tally:
    """Counts of one run, kept up to date while it goes.

    Attributes:
        done: images with a caption.
        failed: images without.
        skipped: images that had one already.
        waited: seconds in which the model stood still for want of an image.
        captioned: seconds in which it worked.
        stopped: whether the run ended early because it was asked to.
        batch_size: of the last batches: it gets smaller where memory is short.
    """

    done: int = 0
    failed: int = 0
    skipped: int = 0
    waited: float = 0.0
    captioned: float = 0.0
    stopped: bool = False
    batch_size: int = 0
