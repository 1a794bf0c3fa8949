"""One benchmark: a workload is run at each batch size, timed phase by phase, then counted."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mmt_cli.benchmark.caption import CaptionWorkload, synthetic_image
from mmt_cli.benchmark.layers import MILLISECONDS, Sample, Stopwatch, clock_for
from mmt_cli.benchmark.machine import describe_machine, peak_memory, reset_peak_memory
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.results import BatchResult, PhaseTimes, Report, Summary, layer_rows
from mmt_cli.benchmark.train import TrainWorkload
from mmt_cli.benchmark.work import Work, WorkCounter
from mmt_cli.benchmark.workload import Workload, image_places
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import UsageError, is_out_of_memory
from mmt_cli.inputs.image import read_image
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise

_RUNS = {"caption": "captions", "train": "training steps"}


def run_benchmark(options: BenchOptions, *, note: Callable[[str], None] = lambda _: None) -> Report:
    """Measure captioning or training.

    Args:
        options: what and how.
        note: takes a line about what goes on.

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
        ImageError: the image cannot be read.
        UsageError: device or dtype do not exist here, settings without a preset, the tokens do not fit the context,
            the batch not the memory.
    """
    image = _image(options)
    captioner = load(options)
    batches = []
    for batch_size in options.batch_sizes:
        note(
            f"batch {batch_size}: {options.warmup} warm-up and {options.repetitions} timed {_RUNS[options.phase]} "
            f"of {options.model}"
        )
        try:
            workload = _workload(captioner, image, options, batch_size)
            batches.append(measure(workload, options))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"out of memory (batch size {batch_size}, {captioner.device}); use a smaller -b"
            ) from error
    machine = describe_machine(workload.device, workload.dtype)
    return Report(machine=machine, settings=options.to_json(), batches=tuple(batches))


def _image(options: BenchOptions) -> bytes | Path | None:
    """Return the image to caption; a bad file is named before time goes into a model."""
    if options.phase == "train":
        return None
    image = synthetic_image(options.seed) if options.image is None else options.image
    read_image(image)
    return image


def _workload(captioner: Captioner, image: bytes | Path | None, options: BenchOptions, batch_size: int) -> Workload:
    if image is None:
        return TrainWorkload(captioner, options, batch_size)
    return CaptionWorkload(captioner, image, options, batch_size)


def load(options: BenchOptions) -> Captioner:
    """Return the model with its preprocessing; a preset gets the weights that training would start from.

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
        UsageError: device or dtype do not exist here, settings without a preset, the text is too long for the model.
    """
    dtype = "float32" if options.phase == "train" else options.dtype
    config = referenced_preset(options.model, options.settings)
    if config is None:
        captioner = Captioner.load(options.model, device=options.device, dtype=dtype, hub=options.hub)
    else:
        device = resolve_device(options.device)
        torch.manual_seed(options.seed)
        model = MultimodalTransformer(config)
        initialise(model)
        captioner = Captioner(
            model=model.to(device, resolve_dtype(dtype, device)).eval().requires_grad_(False),
            tokenizer=None,
            preprocessing=default_preprocessing(config),
            generation=GenerationOptions(),
        )
    _check_length(options, captioner.model.config)
    return captioner


def _check_length(options: BenchOptions, config: ModelConfig) -> None:
    texts = [(config, options.text_length)]
    if config.prompt_encoder is not None:
        texts.append((config.of_prompt_encoder, options.prompt_tokens))
    for reader, length in texts:
        image, limit = len(image_places(reader)), reader.text.max_length
        if image + length > limit:
            among = f", {image} of it the image's" if image else ""
            raise UsageError(
                f"the text is too long (--prompt-tokens {options.prompt_tokens} and --gen-tokens {options.gen_tokens}, "
                f"the model's context is {limit}{among}); lower one of them"
            )


def measure(workload: Workload, options: BenchOptions) -> BatchResult:
    """Time the runs of one batch size, then count the work of one."""
    clock = clock_for(workload.device)
    warm: Stopwatch[Any, float] = Stopwatch(clock)
    watch: Stopwatch[Any, float] = Stopwatch(clock)
    with torch.inference_mode(not workload.trains):
        for _ in range(options.warmup):
            workload.run(warm)
        reset_peak_memory(workload.device)
        with watch.watching(workload.model) if options.layers else nullcontext():
            for _ in range(options.repetitions):
                workload.run(watch)
    peak = peak_memory(workload.device)
    counted = _count(workload) if options.layers else {}
    names = [name for name in (*workload.parts, workload.whole) if name in watch.samples]
    rows = {n: layer_rows(n, workload.batch_size, watch.samples[n], counted.get(n, ())) for n in names}
    phases = tuple(
        PhaseTimes(name=n, batch_size=workload.batch_size, samples_ms=tuple(s.total for s in watch.samples[n]))
        for n in names
    )
    flops = counted[workload.whole][0].total.flops if counted else None
    parts = tuple(rows.pop(workload.whole))
    return BatchResult(
        phases=phases,
        parts=parts,
        layers=tuple(row for found in rows.values() for row in found) if options.layers else (),
        summary=_summary(workload, phases, peak, flops),
    )


def _count(workload: Workload) -> dict[str, list[Sample[Work]]]:
    counter = WorkCounter(workload.model)
    watch: Stopwatch[Work, Work] = Stopwatch(counter)
    with torch.set_grad_enabled(workload.trains), counter, watch.watching(workload.model):
        workload.run(watch)
    return watch.samples


def _summary(workload: Workload, phases: Sequence[PhaseTimes], peak: int, flops: int | None) -> Summary:
    by_name = {phase.name: phase for phase in phases}
    return Summary(
        batch_size=workload.batch_size,
        images_per_s=workload.batch_size / by_name[workload.whole].median_ms * MILLISECONDS,
        tokens_per_s=workload.tokens_per_s(by_name),
        ttft_ms=workload.ttft_ms(by_name),
        peak_memory_bytes=peak,
        flops=flops,
        parameters=sum(parameter.numel() for parameter in workload.model.parameters()),
    )
