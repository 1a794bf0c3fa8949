"""Images with captions: what is learned from them word by word."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mmt_cli.errors import DataError, UsageError
from mmt_cli.model.config import ModelConfig
from mmt_cli.training.augment import Augmentation
from mmt_cli.training.batches import Batch, Rows, encode_captions, image_batch
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import Evaluator, Scores
from mmt_cli.training.examples import Examples
from mmt_cli.training.findings import Findings
from mmt_cli.training.images import FeatureImages, Images, Prepared
from mmt_cli.training.objectives.base import Objective
from mmt_cli.training.objectives.caption import Caption
from mmt_cli.training.objectives.contrastive import CaptionContrastive
from mmt_cli.training.objectives.self_critical import COUNTED, Consensus, SelfCritical
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import Job, Position, buffered, shuffled
from mmt_cli.training.origin import before_answer
from mmt_cli.training.sequential import SequentialReader
from mmt_cli.training.setup import build
from mmt_cli.training.state import data_identity
from mmt_cli.training.tasks.base import words_of

CONTRASTIVE_WIDTH = 512  # of the space of a new contrastive head, where the config names none


class CaptionTask:
    """Images with captions; judged by the captions of others."""

    unit = "images"
    untrained: tuple[str, ...] = ()

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.findings = Findings(options.max_errors), Findings(options.max_errors)
        data, val = self.findings
        self.examples = open_dataset(options.data, images=options.images, findings=data)
        self.val_examples = Examples([])
        if options.val:
            self.val_examples = open_dataset(options.val, images=options.images, split="val", findings=val)
        self.count, self.val_count = len(self.examples), len(self.val_examples)
        self.unreadable = set[int]()  # examples whose images turned out to be broken
        self.lock = threading.Lock()
        self.check_data()
        self.captioner = build(options, self.examples.captions, self.needed)
        images = FeatureImages if options.cache_features else Images
        augmentation = Augmentation(kinds=options.augment, seed=options.seed) if options.augment else None
        self.reader = None if options.shuffle_buffer is None else SequentialReader(self.examples, self._arrivals)
        self.images = images(self.examples, self.captioner, augmentation, self.reader)
        self.val_images = images(self.val_examples, self.captioner)
        self.objective = self.build_objective()

    def check_data(self) -> None:
        """Raise UsageError where the objective cannot be learned from the data."""

    def needed(self, config: ModelConfig) -> ModelConfig:
        """Return the config with what the objective needs."""
        return config

    def build_objective(self) -> Objective:
        """Return what is learned."""
        return Caption(self.captioner.model, self.images.see, label_smoothing=self.options.label_smoothing)

    def identity(self) -> dict[str, Any]:
        """Return number and digest of training and validation images, by file name and captions."""
        sets = {"data": self.examples, "val": self.val_examples}
        return {name: data_identity(len(examples), _described(examples)) for name, examples in sets.items()}

    def prepare(self) -> Iterator[Prepared]:
        """Have the images prepared, and have captions turned into tokens."""
        yield from self.images.prepare(keep_gaps=self.options.max_errors is not None)
        yield from self.val_images.prepare()
        self.rows = self.encode(self.examples)

    def encode(self, examples: Examples) -> Rows:
        """Return the captions of each example as tokens, with places for the image where the model has some."""
        captioner = self.captioner
        encode = partial(
            encode_captions,
            tokenizer=words_of(captioner),
            max_length=captioner.model.config.text.max_length,
            start=self.start,
            end_id=captioner.end_id,
            before=before_answer(captioner),
        )
        return Rows(examples.captions, encode)

    @cached_property
    def start(self) -> tuple[int, ...]:
        """What each row begins with: all that the model reads before it writes, asked nothing by the user."""
        return self.captioner.encode_prompt(None).ids

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the indices of all images as an epoch takes them."""
        options = self.options
        if options.shuffle_buffer is None:
            return shuffled(self.count, seed=options.seed, epoch=epoch)
        return buffered(self.examples.lengths, size=options.shuffle_buffer, seed=options.seed, epoch=epoch)

    def _arrivals(self, epoch: int) -> Iterator[int]:
        """Yield the same indices as they come into the buffer: each file from its start to its end."""
        return buffered(self.examples.lengths, size=1, seed=self.options.seed, epoch=epoch)

    def follow(self, jobs: Callable[[Position], Iterator[Job]], start: Position) -> None:
        """Read what the jobs ask for in the order of the files, where images go through a shuffle buffer."""
        if self.reader is not None:
            self.reader.follow(jobs, start)

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these images, each with all its captions, as they are to be seen in an epoch."""
        images, problems = self.images, list[str]()
        taken = [self._readable(index, epoch, problems) for index in indices]
        rows = [self.rows.of(index, mirrored=images.mirrored(index, epoch)) for index, _ in taken]
        batch = image_batch([loaded for _, loaded in taken], rows, start=len(self.start))
        return dataclasses.replace(batch, problems=tuple(problems))

    def _readable(self, index: int, epoch: int, problems: list[str]) -> tuple[int, tuple[str, Tensor]]:
        """Return an example's index, key and image, or those of the next one behind it whose image can be read.

        So batches stay as large as they are, and a run that goes on does the same again, whatever it met before.

        Raises:
            BrokenDataError: more images cannot be read than `--max-errors` allows.
        """
        findings = self.findings[0]
        for place in range(index, index + self.count):
            place %= self.count
            if place not in self.unreadable:
                try:
                    return place, self.images.load(place, epoch)
                except DataError as problem:
                    with self.lock:
                        if place not in self.unreadable:
                            self.unreadable.add(place)
                            findings.refuse(problem)
                            problems.append(f"{str(problem).rpartition('; ')[0]}; the next one takes its place")
            findings.check()  # of a known one, too: a thread that reads a later batch may have met it first
        raise DataError(f"no image can be read any more (training images {self.count:,}); look where they are")

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scorer of the validation images, its references prepared once."""
        return Evaluator(self.val_examples)

    def score(self) -> Scores:
        """Score captions of the validation images by CIDEr and BLEU."""
        return self.evaluator.score(self.captioner, self.val_images.see_all)


class ContrastiveTask(CaptionTask):
    """The same data and the same score; the model also learns which caption belongs to which image."""

    def check_data(self) -> None:
        """Raise UsageError where a batch is one image."""
        if self.count == 1:
            raise UsageError(
                "one image has nothing to be told from (--objective caption+contrastive, 1 training image); "
                "give more images"
            )

    def needed(self, config: ModelConfig) -> ModelConfig:
        """Return the config with a contrastive head."""
        return dataclasses.replace(config, contrastive_width=config.contrastive_width or CONTRASTIVE_WIDTH)

    def build_objective(self) -> Objective:
        """Return what is learned."""
        return CaptionContrastive(self.captioner.model, self.images.see, label_smoothing=self.options.label_smoothing)


class SelfCriticalTask(CaptionTask):
    """The same data and the same score; the model learns from captions of its own, by how they score."""

    def build_objective(self) -> Objective:
        """Return what is learned."""
        if not self.captioner.model.config.cacheable:
            raise UsageError(
                "a single readout tells how likely one word is, not a caption (--objective scst, fusion.visibility "
                "bidirectional); use --objective caption"
            )
        captions = self.examples.captions
        consensus = Consensus(captions[:: max(1, len(captions) // COUNTED)])
        smoothing = self.options.label_smoothing
        temperature = self.options.sample_temperature
        return SelfCritical(
            self.captioner, self.images.see, consensus, label_smoothing=smoothing, temperature=temperature
        )


def _described(examples: Examples) -> Callable[[int], list[str]]:
    return lambda index: [Path(examples[index].key).name, *examples[index].captions]
