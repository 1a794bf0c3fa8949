"""The workload of captioning: from file to text, on random prompts.

B items, R rows, V vocabulary.
"""

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmt_cli.benchmark.layers import MILLISECONDS, Stopwatch
from mmt_cli.benchmark.options import SYNTHETIC_SIZE, BenchOptions, Case
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.benchmark.workload import random_questions, random_text
from mmt_cli.captioning.author import Author
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.decoding.generate import Stepper, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.prompt import Prompt
from mmt_cli.model.context import ImageTokens

FIRST_TOKEN = "first token"  # noqa: S105 — a phase: from the file to the first chosen token


class CaptionWorkload:
    """Captions one batch again and again, the same one each time."""

    whole = "caption"
    parts: tuple[str, ...] = (
        *("read", "preprocess", "transfer", "vision", "connector", "prefill", "decode", "choose", "detokenise"),
    )
    across: tuple[str, ...] = (FIRST_TOKEN,)
    trains = False

    def __init__(self, captioner: Captioner, image: bytes | Path, options: BenchOptions, case: Case) -> None:
        # How many tiles there were, images would decide: they are kept whole.
        self.captioner = captioner if captioner.preprocessing.tiling is None else captioner.adjusted(split=False)
        self.model, self.device, self.dtype = captioner.model, captioner.device, captioner.dtype
        self.image = image
        self.case = case
        self.prompts = random_prompts(self.captioner, case, options.seed)
        self.generation = GenerationOptions(max_new_tokens=case.gen_tokens)
        assert captioner.tokenizer is not None, "words are made up for models that have none"
        self.author = Author(model=self.model, words=captioner.tokenizer, native=True)

    def run(self, watch: Stopwatch[Any, Any]) -> None:
        """Caption the batch under the stopwatch."""
        first_token = watch.stretch(FIRST_TOKEN)
        with watch.phase(self.whole):
            pictures = [self._picture(watch) for _ in range(self.case.batch_size)]
            image = self._see(pictures, watch)
            with inference(self.model), _WatchedStepper(lambda: self._stepper(image), watch, first_token) as stepper:
                texts = generate(stepper, [prompt.ids for prompt in self.prompts], self.generation)
            with watch.phase("detokenise"):
                for [text] in texts:
                    self.author.words.decode(text.tokens)

    def _picture(self, watch: Stopwatch[Any, Any]) -> Picture:
        with watch.phase("read"):
            image = self.captioner.open(self.image)
        with watch.phase("preprocess"):
            return self.captioner.prepare(image)

    def _see(self, pictures: Sequence[Picture], watch: Stopwatch[Any, Any]) -> ImageTokens:
        """Return what the model sees; what happens before the tower is the transfer, scaling the samples included."""
        transfer = _Once(watch.phase("transfer"))
        with watch.phase_of(self.model.vision, "vision"), watch.phase_of(self.model.connector, "connector"):
            handle = self.model.vision.register_forward_pre_hook(lambda *_: transfer.close(), prepend=True)
            try:
                return self.captioner.see(pictures)
            finally:
                handle.remove()

    def _stepper(self, image: ImageTokens) -> Stepper:
        return self.author.stepper(self.prompts, image, self.generation.max_new_tokens)

    def tokens_per_s(self, phases: Mapping[str, PhaseTimes]) -> float | None:
        """Return new tokens in decode steps; None where there was no step."""
        decode = phases.get("decode")
        return self.case.batch_size / decode.median_ms * MILLISECONDS if decode else None


class _Once:
    """A context that is entered at once and left at the first call of `close`."""

    def __init__(self, context: AbstractContextManager[None]) -> None:
        self._context: AbstractContextManager[None] | None = context
        context.__enter__()

    def close(self) -> None:
        """Leave it, if that has not been done."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)


class _WatchedStepper:
    """A stepper whose prefill, with the reading of a question before it, and steps are phases.

    What happens between them is the choosing of tokens.
    """

    def __init__(
        self, build: Callable[[], Stepper], watch: Stopwatch[Any, Any], first_token: Callable[[], None]
    ) -> None:
        self.build = build
        self.watch = watch
        self._first_token: Callable[[], None] | None = first_token
        self._choosing: _Once | None = None

    def __enter__(self) -> "_WatchedStepper":
        return self

    def __exit__(self, *_: object) -> None:
        self._chosen()

    def start(self) -> Tensor:
        """Return logits_BV after the prompts."""
        with self._reading("prefill"):
            self.stepper = self.build()
            return self.stepper.start()

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        with self._reading("decode"):
            return self.stepper.step(token_ids_R)

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.stepper.reorder(row_R)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        self._chosen()
        with self.watch.phase(name):
            yield
        self._choosing = _Once(self.watch.phase("choose"))

    def _chosen(self) -> None:
        if self._choosing is None:
            return
        self._choosing.close()
        self._choosing = None
        if self._first_token is not None:
            self._first_token()
            self._first_token = None


def random_prompts(captioner: Captioner, case: Case, seed: int) -> list[Prompt]:
    """Return a prompt of random words for each image, behind its placeholders where the model has such."""
    text = (captioner.model.config, case.batch_size, case.prompt_tokens, seed, captioner.layout().tokens)
    questions_BP = random_questions(*text)
    questions = [None] * case.batch_size if questions_BP is None else [tuple(row) for row in questions_BP.tolist()]
    return [
        Prompt(ids=tuple(ids), encoder_ids=question, shown=case.prompt_tokens)
        for ids, question in zip(random_text(*text), questions, strict=True)
    ]


def synthetic_image(seed: int) -> bytes:
    """Return a JPEG as soft as photos are; noise would take longer to decode."""
    coarse = Image.frombytes("RGB", (20, 15), random.Random(seed).randbytes(20 * 15 * 3))  # noqa: S311
    file = io.BytesIO()
    coarse.resize(SYNTHETIC_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
