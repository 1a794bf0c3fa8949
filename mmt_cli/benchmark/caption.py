"""The workload of captioning: from file to tokens, on random prompts.

B items, C channels, H height, W width in pixels, R rows, V vocabulary.
"""

import io
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmt_cli.benchmark.layers import MILLISECONDS, Stopwatch
from mmt_cli.benchmark.options import SYNTHETIC_SIZE, BenchOptions
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.benchmark.workload import random_questions, random_text
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.stepper import build_stepper
from mmt_cli.decoding.generate import Stepper, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.image import read_image
from mmt_cli.inputs.preprocess import to_pixels
from mmt_cli.model.context import ImageTokens

BEFORE_FIRST_TOKEN = ("preprocess", "vision", "connector", "prefill")


class CaptionWorkload:
    """Captions one batch again and again, the same one each time."""

    whole = "caption"
    parts: tuple[str, ...] = (*BEFORE_FIRST_TOKEN, "decode")
    trains = False

    def __init__(self, captioner: Captioner, image: bytes | Path, options: BenchOptions, batch_size: int) -> None:
        self.model, self.device, self.dtype = captioner.model, captioner.device, captioner.dtype
        self.preprocessing = captioner.preprocessing.without_split()  # how many tiles there were, images would decide
        self.image = image
        self.batch_size = batch_size
        text = (self.model.config, batch_size, options.prompt_tokens, options.seed, captioner.layout().tokens)
        self.prompts, self.questions_BP = random_text(*text), random_questions(*text)
        self.generation = GenerationOptions(max_new_tokens=options.gen_tokens)

    def run(self, watch: Stopwatch[Any, Any]) -> None:
        """Caption the batch under the stopwatch."""
        with watch.phase(self.whole):
            with watch.phase("preprocess"):
                pixels_BCHW = self._pixels(watch)
            with watch.phase("vision"):
                tokens = self.model.vision(pixels_BCHW)
            with watch.phase("connector"):
                image = self.model.connector(tokens)
            generate(_WatchedStepper(lambda: self._stepper(image), watch), self.prompts, self.generation)

    def _stepper(self, image: ImageTokens) -> Stepper:
        if self.questions_BP is not None:
            image = self.model.ask(self.questions_BP.to(self.device), image)
        return build_stepper(self.model, image, self.prompts, self.generation.max_new_tokens)

    def _pixels(self, watch: Stopwatch[Any, Any]) -> Tensor:
        size = (self.preprocessing.height, self.preprocessing.width) if self.preprocessing.draft else None
        pixels = []
        for _ in range(self.batch_size):
            with watch.layer("read and decode"):
                image = read_image(self.image, draft_size=size)
            with watch.layer("resize and scale"):
                pixels.append(to_pixels(image, self.preprocessing))
        with watch.layer("stack and move"):
            return torch.stack(pixels).to(self.device, self.dtype)

    def tokens_per_s(self, phases: Mapping[str, PhaseTimes]) -> float | None:
        """Return new tokens in decode steps; None where there was no step."""
        decode = phases.get("decode")
        return self.batch_size / decode.median_ms * MILLISECONDS if decode else None

    def ttft_ms(self, phases: Mapping[str, PhaseTimes]) -> float | None:
        """Return the median over the captions."""
        runs = zip(*(phases[name].samples_ms for name in BEFORE_FIRST_TOKEN), strict=True)
        return statistics.median(map(sum, runs))


class _WatchedStepper:
    """A stepper whose prefill, with the reading of a question before it, and steps are phases."""

    def __init__(self, build: Callable[[], Stepper], watch: Stopwatch[Any, Any]) -> None:
        self.build = build
        self.watch = watch

    def start(self) -> Tensor:
        """Return logits_BV after the prompts."""
        with self.watch.phase("prefill"):
            self.stepper = self.build()
            return self.stepper.start()

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        with self.watch.phase("decode"):
            return self.stepper.step(token_ids_R)

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.stepper.reorder(row_R)


def synthetic_image(seed: int) -> bytes:
    """Return a JPEG as soft as photos are; noise would take longer to decode."""
    coarse = Image.frombytes("RGB", (20, 15), random.Random(seed).randbytes(20 * 15 * 3))  # noqa: S311
    file = io.BytesIO()
    coarse.resize(SYNTHETIC_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
