"""The same weights and the same inputs through transformers: in turn, in one process.

Both start from pixels and end with tokens; reading the file, and text, are the same work in both.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmt_cli.benchmark.caption import random_prompts
from mmt_cli.benchmark.comparison import Comparison, paired_ratio
from mmt_cli.benchmark.foreign import Foreign, check_export, export
from mmt_cli.benchmark.layers import WallClock
from mmt_cli.benchmark.options import BenchOptions, Case
from mmt_cli.benchmark.subject import made_up_words
from mmt_cli.captioning.author import Author
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.overrides import override
from mmt_cli.decoding.generate import generate
from mmt_cli.inputs.preprocess import normalise
from mmt_cli.inputs.prompt import Prompt
from mmt_cli.model.presets import referenced_preset

Tokens = list[list[int]]
_PLAIN = {"num_beams": 1, "num_captions": 1, "temperature": None, "top_k": None, "top_p": None, "stop_loops": False}


@contextmanager
def both(reference: str, options: BenchOptions) -> Iterator[tuple[Captioner, Foreign]]:
    """Load a checkpoint twice; a preset is written for transformers first, into a temporary folder.

    Raises:
        ModelError: the checkpoint is missing or cannot be loaded.
        UsageError: transformers is not installed, or has no such model.
    """
    config = referenced_preset(reference, options.settings)
    with tempfile.TemporaryDirectory(prefix="mmt-bench-") as folder:
        if config is not None:
            name = reference.partition(":")[2]
            export(name, config, Path(folder), options.seed)
            reference = folder
        captioner = Captioner.load(
            reference, device=options.device, dtype=options.dtype, hub=options.hub, quantize=options.quantize
        )
        if config is not None:
            check_export(name, config, captioner)
        foreign = Foreign(captioner)
        yield captioner, foreign
    del captioner, foreign
    gc.collect()


def compare(
    captioner: Captioner, foreign: Foreign, image: bytes | Path, options: BenchOptions, case: Case
) -> list[Comparison]:
    """Time whole captions and first tokens, ours and theirs in turn, the order changing from round to round."""
    whole = captioner if captioner.preprocessing.tiling is None else captioner.adjusted(split=False)
    pictures = [whole.read(image)] * case.batch_size
    samples_NHWC = torch.cat([picture.samples_NHWC for picture in pictures]).to(whole.device)
    pixels_BCHW = normalise(samples_NHWC, whole.preprocessing).to(whole.dtype)
    starts = foreign.starting([prompt.ids for prompt in random_prompts(whole, case, options.seed)])
    words = whole.tokenizer or made_up_words(whole.model.config.text.vocab_size)
    author = Author(model=whole.model, words=words, native=False)
    prompts = [Prompt(ids=tuple(ids)) for ids in starts]

    def ours(length: int) -> Tokens:
        wanted = override(whole.generation, {**_PLAIN, "max_new_tokens": length, "min_new_tokens": length})
        seen = whole.see(pictures)
        with inference(whole.model):
            found = generate(author.stepper(prompts, seen, length), starts, wanted)
        return [list(text.tokens) for [text] in found]

    def theirs(length: int) -> Tokens:
        return foreign.generate(pixels_BCHW, starts, length)

    lengths = {"caption": case.gen_tokens, "first token": 1} if case.gen_tokens > 1 else {"caption": 1}
    return [_in_turn(name, length, (ours, theirs), foreign.name, options, case) for name, length in lengths.items()]


def _in_turn(
    name: str,
    length: int,
    ways: tuple[Callable[[int], Tokens], Callable[[int], Tokens]],
    other: str,
    options: BenchOptions,
    case: Case,
) -> Comparison:
    # The clock of the process: what is compared includes the work of Python around the model.
    clock = WallClock()
    written = [way(length) for way in ways]
    for _ in range(options.warmup - 1):
        written = [way(length) for way in ways]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(options.repetitions):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            start = clock.mark()
            written[place] = ways[place](length)
            times[place].append(clock.between(start, clock.mark()))
    pairs = [pair for texts in zip(*written, strict=True) for pair in zip(*texts, strict=True)]
    return Comparison(
        case=case,
        name=name,
        other=other,
        ours_ms=tuple(times[0]),
        theirs_ms=tuple(times[1]),
        ratio=paired_ratio(*times),
        tokens=len(pairs),
        equal_tokens=sum(a == b for a, b in pairs),
    )
