"""One benchmark: captions from file to tokens, phase by phase, on random prompts.

B items, C channels, H height, W width in pixels, N image tokens, D width, R rows, V vocabulary.
"""

import io
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmt_cli.benchmark.layers import MILLISECONDS, Stopwatch, clock_for
from mmt_cli.benchmark.machine import describe_machine, peak_memory, reset_peak_memory
from mmt_cli.benchmark.results import BatchResult, PhaseTimes, Report, Summary, layer_rows
from mmt_cli.benchmark.work import WorkCounter
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.stepper import build_stepper
from mmt_cli.checkpoint.load import default_preprocessing
from mmt_cli.decoding.generate import Stepper, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import UsageError, is_out_of_memory
from mmt_cli.inputs.image import read_image
from mmt_cli.inputs.preprocess import to_pixels
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise

CAPTION = "caption"
BEFORE_FIRST_TOKEN = ("preprocess", "vision", "connector", "prefill")
PHASES = (*BEFORE_FIRST_TOKEN, "decode", CAPTION)

_SYNTHETIC_SIZE = (640, 480)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure, and how.

    Attributes:
        model: any model reference, or `preset:NAME` for random weights.
        image: the file to caption; None makes a JPEG of 640 x 480 pixels.
        batch_sizes: images at a time, one measurement each.
        prompt_tokens: length of the random prompts.
        gen_tokens: new tokens of each caption; none of them ends it.
        repetitions: captions that are measured.
        warmup: captions before them that are not.
        layers: whether to measure and count inside the phases, too.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        seed: start of every random draw.
    """

    model: str = "mini"
    image: Path | None = None
    batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: int = 2
    gen_tokens: int = 20
    repetitions: int = 5
    warmup: int = 2
    layers: bool = True
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the settings of a report; device and dtype stand with the machine, as what was taken."""
        return {
            "model": self.model,
            "image": str(self.image) if self.image else "synthetic {} x {}".format(*_SYNTHETIC_SIZE),
            "batch_sizes": list(self.batch_sizes),
            "prompt_tokens": self.prompt_tokens,
            "gen_tokens": self.gen_tokens,
            "repetitions": self.repetitions,
            "warmup": self.warmup,
            "layers": self.layers,
            "seed": self.seed,
        }


def run_benchmark(options: BenchOptions, *, note: Callable[[str], None] = lambda _: None) -> Report:
    """Measure captioning.

    Args:
        options: what and how.
        note: takes a line about what goes on.

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
        ImageError: the image cannot be read.
        UsageError: device or dtype do not exist here, the tokens do not fit the context, the batch not the memory.
    """
    image = _synthetic_image(options.seed) if options.image is None else options.image
    read_image(image)  # a bad file is named before time goes into a model
    captioner = load(options)
    _check_length(options, captioner.model.config.text.max_length)
    batches = []
    for batch_size in options.batch_sizes:
        note(
            f"batch {batch_size}: {options.warmup} warm-up and {options.repetitions} timed captions of {options.model}"
        )
        workload = Workload(captioner, image, options, batch_size)
        try:
            batches.append(measure(workload, options))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"out of memory (batch size {batch_size}, {captioner.device}); use a smaller -b"
            ) from error
    machine = describe_machine(captioner.device, captioner.dtype)
    return Report(machine=machine, settings=options.to_json(), batches=tuple(batches))


def load(options: BenchOptions) -> Captioner:
    """Return the model with its preprocessing; a preset gets the weights that training would start from."""
    config = referenced_preset(options.model)
    if config is None:
        return Captioner.load(options.model, device=options.device, dtype=options.dtype)
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    model = MultimodalTransformer(config)
    initialise(model)
    return Captioner(
        model=model.to(device, resolve_dtype(options.dtype, device)).eval().requires_grad_(False),
        tokenizer=None,
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(),
    )


def _synthetic_image(seed: int) -> bytes:
    """Return a JPEG as soft as photos are; noise would take longer to decode."""
    coarse = Image.frombytes("RGB", (20, 15), random.Random(seed).randbytes(20 * 15 * 3))  # noqa: S311
    file = io.BytesIO()
    coarse.resize(_SYNTHETIC_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _check_length(options: BenchOptions, max_length: int) -> None:
    # The last new token is never read back, so it needs no position.
    if options.prompt_tokens + options.gen_tokens - 1 > max_length:
        raise UsageError(
            f"the text is too long (--prompt-tokens {options.prompt_tokens} and --gen-tokens {options.gen_tokens}, "
            f"the model's context is {max_length}); lower one of them"
        )


class Workload:
    """Captions one batch again and again, the same one each time."""

    def __init__(self, captioner: Captioner, image: bytes | Path, options: BenchOptions, batch_size: int) -> None:
        self.captioner = captioner
        self.image = image
        self.batch_size = batch_size
        draw = random.Random(options.seed)  # noqa: S311
        vocabulary = range(captioner.model.config.text.vocab_size)
        self.prompts = [draw.choices(vocabulary, k=options.prompt_tokens) for _ in range(batch_size)]
        self.generation = GenerationOptions(max_new_tokens=options.gen_tokens)

    def caption(self, watch: Stopwatch[Any, Any]) -> None:
        """Caption the batch under the stopwatch; the caller turns gradients off."""
        model = self.captioner.model
        with watch.phase(CAPTION):
            with watch.phase("preprocess"):
                pixels_BCHW = self._pixels(watch)
            with watch.phase("vision"):
                tokens_BND = model.vision(pixels_BCHW)
            with watch.phase("connector"):
                image_BND = model.connector(tokens_BND)
            stepper = build_stepper(model, image_BND, self.prompts, self.generation.max_new_tokens)
            generate(_WatchedStepper(stepper, watch), self.prompts, self.generation)

    def _pixels(self, watch: Stopwatch[Any, Any]) -> Tensor:
        preprocessing = self.captioner.preprocessing
        size = (preprocessing.height, preprocessing.width)
        pixels = []
        for _ in range(self.batch_size):
            with watch.layer("read and decode"):
                image = read_image(self.image, draft_size=size)
            with watch.layer("resize and scale"):
                pixels.append(to_pixels(image, preprocessing))
        with watch.layer("stack and move"):
            return torch.stack(pixels).to(self.captioner.device, self.captioner.dtype)


class _WatchedStepper:
    """A stepper whose prefill and steps are phases."""

    def __init__(self, stepper: Stepper, watch: Stopwatch[Any, Any]) -> None:
        self.stepper = stepper
        self.watch = watch

    def start(self) -> Tensor:
        """Return logits_BV after the prompts."""
        with self.watch.phase("prefill"):
            return self.stepper.start()

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        with self.watch.phase("decode"):
            return self.stepper.step(token_ids_R)

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.stepper.reorder(row_R)


def measure(workload: Workload, options: BenchOptions) -> BatchResult:
    """Time the captions of one batch size, then count the work of one."""
    captioner = workload.captioner
    clock = clock_for(captioner.device)
    warm: Stopwatch[Any, float] = Stopwatch(clock)
    watch: Stopwatch[Any, float] = Stopwatch(clock)
    with torch.inference_mode():
        for _ in range(options.warmup):
            workload.caption(warm)
        reset_peak_memory(captioner.device)
        with watch.watching(captioner.model) if options.layers else nullcontext():
            for _ in range(options.repetitions):
                workload.caption(watch)
    peak = peak_memory(captioner.device)
    counted = _count(workload) if options.layers else {}
    rows = {
        n: layer_rows(n, workload.batch_size, watch.samples[n], counted.get(n, ()))
        for n in PHASES
        if n in watch.samples
    }
    phases = tuple(
        PhaseTimes(name=name, batch_size=workload.batch_size, samples_ms=tuple(s.total for s in watch.samples[name]))
        for name in rows
    )
    parts = tuple(rows.pop(CAPTION))
    return BatchResult(
        phases=phases,
        parts=parts,
        layers=tuple(row for found in rows.values() for row in found) if options.layers else (),
        summary=_summary(phases, peak),
    )


def _count(workload: Workload) -> dict[str, Any]:
    counter = WorkCounter(workload.captioner.model)
    watch: Stopwatch[Any, Any] = Stopwatch(counter)
    with torch.no_grad(), counter, watch.watching(workload.captioner.model):
        workload.caption(watch)
    return watch.samples


def _summary(phases: Sequence[PhaseTimes], peak: int) -> Summary:
    by_name = {phase.name: phase for phase in phases}
    batch_size = phases[0].batch_size
    decode = by_name.get("decode")
    first_token = [sum(times) for times in zip(*(by_name[n].samples_ms for n in BEFORE_FIRST_TOKEN), strict=True)]
    return Summary(
        batch_size=batch_size,
        images_per_s=batch_size / by_name[CAPTION].median_ms * MILLISECONDS,
        tokens_per_s=batch_size / decode.median_ms * MILLISECONDS if decode else None,
        ttft_ms=statistics.median(first_token),
        peak_memory_bytes=peak,
    )
