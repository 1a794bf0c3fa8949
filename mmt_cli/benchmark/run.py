"""One benchmark: each model is loaded once, measured in each case, and compared."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmt_cli.benchmark.against import both, compare
from mmt_cli.benchmark.caption import CaptionWorkload, synthetic_image
from mmt_cli.benchmark.ceilings import Ceilings, measure_ceilings
from mmt_cli.benchmark.cold import COLD_START, cold_starts
from mmt_cli.benchmark.foreign import library
from mmt_cli.benchmark.machine import describe_machine
from mmt_cli.benchmark.measure import measure
from mmt_cli.benchmark.options import BenchOptions, Case
from mmt_cli.benchmark.report import Report, Result
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.benchmark.subject import Subject, opened
from mmt_cli.benchmark.train import TrainWorkload
from mmt_cli.benchmark.workload import Workload
from mmt_cli.errors import UsageError, is_out_of_memory
from mmt_cli.inputs.image import read_image

_RUNS = {"caption": "captions", "train": "training steps"}
Note = Callable[[str], None]


def run_benchmark(options: BenchOptions, *, note: Note = lambda _: None) -> Report:
    """Measure captioning or training.

    Args:
        options: what and how.
        note: takes a line about what goes on.

    Raises:
        ModelError: a checkpoint is missing or cannot be loaded.
        ImageError: the image cannot be read.
        UsageError: device or dtype do not exist here, settings without a preset, the tokens do not fit the context,
            the batch not the memory, or there is nothing to compare with.
    """
    if options.against:
        library()
    bench = _Bench(options, note)
    results = [result for model in options.models for result in bench.model(model)]
    return Report(machine=bench.machine, settings=options.to_json(), results=tuple(results))


class _Bench:
    """What the measurements of one benchmark share.

    Attributes:
        machine: what the first model ran on.
        ceilings: what that can do at most; None without layers.
    """

    def __init__(self, options: BenchOptions, note: Note) -> None:
        self._options = options
        self._note = note
        self._image = _image(options)
        self.machine: dict[str, Any] = {}
        self.ceilings: Ceilings | None = None

    def model(self, reference: str) -> list[Result]:
        """Measure one model in all its cases."""
        cases = list(self._options.cases(reference))
        with opened(reference, self._options) as subject:
            cold = self._cold(subject, cases[0])
            results = [self._case(subject, case) for case in cases]
        if cold:
            results = [_with_cold_start(result, cold.median_ms) for result in results]
            results[0] = dataclasses.replace(results[0], phases=(cold, *results[0].phases))
        return self._compared(results) if self._options.against else results

    def _cold(self, subject: Subject, case: Case) -> PhaseTimes | None:
        count = self._options.cold_starts
        if not count or self._image is None:
            return None
        if subject.reference is None:
            self._note(f"{case.model} has no tokenizer: no cold start")
            return None
        self._note(f"{case.model}: {count} cold start{'s' if count > 1 else ''}")
        times = cold_starts(subject.reference, self._image, self._options, case.gen_tokens)
        return PhaseTimes(name=COLD_START, case=dataclasses.replace(case, batch_size=1), samples_ms=tuple(times))

    def _case(self, subject: Subject, case: Case) -> Result:
        options = self._options
        warm, timed = options.warmup, options.repetitions
        self._note(f"{_named(case)}: {warm} warm-up and {timed} timed {_RUNS[options.phase]}")
        with _naming_memory(case, subject.captioner.device):
            workload = self._workload(subject, case)
            if not self.machine:
                self.machine = describe_machine(workload.device, workload.dtype, options.quantize)
                self.ceilings = self._measure_ceilings(workload) if options.layers else None
            return measure(workload, options, self.ceilings)

    def _measure_ceilings(self, workload: Workload) -> Ceilings:
        return measure_ceilings(workload.device, workload.dtype, int8=self._options.quantize is not None)

    def _workload(self, subject: Subject, case: Case) -> Workload:
        if self._image is None:
            return TrainWorkload(subject.captioner, self._options, case)
        return CaptionWorkload(subject.captioner, self._image, self._options, case)

    def _compared(self, results: list[Result]) -> list[Result]:
        """Return the results of one model with what another implementation of it takes."""
        assert self._image is not None, "only captions are compared"
        found = []
        with both(results[0].summary.case.model, self._options) as (captioner, foreign):
            for result in results:
                case = result.summary.case
                self._note(f"{_named(case)}: {self._options.repetitions} rounds against {foreign.name}")
                with _naming_memory(case, captioner.device):
                    compared = compare(captioner, foreign, self._image, self._options, case)
                found.append(dataclasses.replace(result, comparisons=tuple(compared)))
        return found


def _image(options: BenchOptions) -> bytes | Path | None:
    """Return the image to caption; a bad file is named before time goes into a model."""
    if options.phase == "train":
        return None
    image = synthetic_image(options.seed) if options.image is None else options.image
    read_image(image)
    return image


def _with_cold_start(result: Result, cold_start_ms: float) -> Result:
    return dataclasses.replace(result, summary=dataclasses.replace(result.summary, cold_start_ms=cold_start_ms))


def _named(case: Case) -> str:
    return f"{case.model}, batch {case.batch_size}, {case.prompt_tokens} + {case.gen_tokens} tokens"


@contextmanager
def _naming_memory(case: Case, device: torch.device) -> Iterator[None]:
    """Say in one line that memory was too small, and for what."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(f"out of memory (batch size {case.batch_size}, {device}); use a smaller -b") from error
