"""What a run of `mmt caption` works with: the model, how it is asked, and what is said of it at the end."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.grounding import image_gains
from mmt_cli.captioning.items import Item
from mmt_cli.captioning.job import RunOptions, Tally
from mmt_cli.captioning.memory import best_batch_size, image_bytes
from mmt_cli.captioning.overrides import override
from mmt_cli.captioning.report import thumbnail
from mmt_cli.captioning.sidecars import Sidecar
from mmt_cli.cli import console
from mmt_cli.cli.caption_request import Request
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import keep_freed_memory, set_threads
from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import MAX_PIXELS

_MOST_WORKERS = 8


def load(request: Request) -> Captioner:
    """Return the model that is asked for, asked as it is to be."""
    keep_freed_memory()
    set_threads(request.threads)
    hub = console.hub_options(revision=request.revision, offline=request.offline, quiet=request.quiet)
    captioner = Captioner.load(
        request.model,
        device=request.device,
        dtype=request.dtype,
        tokenizer=request.tokenizer,
        hub=hub,
        quantize=request.quantize,
    )
    return captioner.adjusted(split=not request.no_split, system=request.system)


def run_options(
    request: Request, captioner: Captioner, sidecar: Sidecar | None, *, max_failures: int | None, thumbnails: bool
) -> RunOptions:
    """Return how the images are captioned.

    Raises:
        UsageError: what is asked for does not go with the checkpoint's defaults.
    """
    # How many captions an image has is the user's to say: the records look otherwise.
    generation = override(captioner.generation, {"num_captions": 1, **request.generation})
    return RunOptions(
        prompt=request.prompt,
        generation=generation,
        batch_size=_batch_size(request, captioner, generation),
        workers=request.workers or min(os.cpu_count() or 1, _MOST_WORKERS),
        max_pixels=request.max_pixels or MAX_PIXELS,
        max_failures=max_failures,
        seed=request.seed,
        prefix=request.prefix,
        suffix=request.suffix,
        stream=_streams(request),
        gains=functools.partial(image_gains, captioner) if request.grounding else None,
        thumbnail=thumbnail if thumbnails else None,
        keep=None if sidecar is None else _keeper(sidecar),
    )


def _batch_size(request: Request, captioner: Captioner, generation: GenerationOptions) -> int:
    if request.batch_size != "auto":
        return int(request.batch_size)
    if request.single:
        return 1
    return best_batch_size(estimate(captioner, generation), captioner.device)


def estimate(captioner: Captioner, generation: GenerationOptions, tiles: int | None = None) -> int:
    """Return bytes that an image takes while it is captioned: one of so many tiles, or of as many as there can be."""
    tiling = captioner.preprocessing.tiling
    return image_bytes(
        captioner.model.config,
        captioner.preprocessing,
        generation,
        tiles=tiles or (1 if tiling is None else tiling.most_tiles(captioner.preprocessing.height)),
        size=captioner.dtype.itemsize,
    )


def _streams(request: Request) -> bool:
    """Say whether words are shown as they come: where asked for, and for one image on a terminal."""
    if request.stream is not None:
        return request.stream
    plain = request.output_format == "text" and request.output is None and (request.num_captions or 1) == 1
    return plain and request.single and sys.stdout.isatty()


def _keeper(sidecar: Sidecar) -> Callable[[Item, Sequence[str]], None]:
    def keep(item: Item, captions: Sequence[str]) -> None:
        if item.file is None:
            what = f"{item.path} lies in no folder, so no sidecar can stand beside it; leave --sidecar out"
            raise ImageError("unsupported", what)
        sidecar.write(item.file, captions)

    return keep


def in_background(make: Callable[[], str]) -> Callable[[], str]:
    """Start to make something in a thread that ends with the process; return what waits for it."""
    made: Future[str] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # whatever it is, it belongs to who asks
            made.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return made.result


@dataclass(frozen=True)
class Summary:
    """What became of a run, for its last line and for its report."""

    tally: Tally
    captioner: Captioner
    loading: float  # seconds
    running: float  # seconds, without loading

    @property
    def fields(self) -> dict[str, str]:
        """Names and values."""
        tally = self.tally
        counts = {"captioned": tally.done, "failed": tally.failed, "skipped": tally.skipped}
        return {
            **{name: str(count) for name, count in counts.items() if count or name != "skipped"},
            "seconds": f"{self.running:.1f}",
            "images/s": f"{tally.done / self.running:.1f}",
            "model": self.captioner.name,
            "ran on": self._where,
        }

    @property
    def line(self) -> str:
        """One line for people."""
        tally = self.tally
        skipped = f", {tally.skipped} skipped" if tally.skipped else ""
        rate = f"{tally.done / self.running:.1f} images/s"
        counts = f"{tally.done} captioned, {tally.failed} failed{skipped} in {self.running:.1f} s ({rate})"
        shares = {"the model": tally.captioned, "waiting for images": tally.waited}
        where_time_went = ", ".join(f"{name} {100 * part / self.running:.0f} %" for name, part in shares.items())
        return f"mmt: {counts} on {self._where}; {where_time_went}; loading {self.loading:.1f} s"

    @property
    def _where(self) -> str:
        numbers = self.captioner.numbers
        batch = f", batches of {self.tally.batch_size}" if self.tally.batch_size > 1 else ""
        return f"{self.captioner.device}, {numbers}{batch}"
