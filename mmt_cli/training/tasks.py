"""What a run learns from, what it learns and what it is judged by: all in which objectives differ to the loop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import UsageError, shown
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.training.augment import Augmentation
from mmt_cli.training.batches import Batch, Row, Rows, encode_captions, image_batch
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import Evaluator, Scores, chunks, score_language, score_masked
from mmt_cli.training.examples import Examples
from mmt_cli.training.findings import Findings
from mmt_cli.training.images import FeatureImages, Images, Prepared
from mmt_cli.training.objectives.base import Objective
from mmt_cli.training.objectives.caption import Caption, Language
from mmt_cli.training.objectives.contrastive import CaptionContrastive
from mmt_cli.training.objectives.masked import Masked
from mmt_cli.training.objectives.self_critical import COUNTED, Consensus, SelfCritical
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import buffered, shuffled
from mmt_cli.training.origin import before_answer
from mmt_cli.training.sentences import open_sentences
from mmt_cli.training.setup import build
from mmt_cli.training.state import data_identity

CONTRASTIVE_WIDTH = 512  # of the space of a new contrastive head, where the config names none


class Task(Protocol):
    """What the loop asks for."""

    @property
    def captioner(self) -> Captioner:
        """The model that learns, and its tokenizer."""

    @property
    def objective(self) -> Objective:
        """What turns a batch into losses."""

    @property
    def unit(self) -> str:
        """What one example is called, in the plural."""

    @property
    def untrained(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters that keep their values."""

    @property
    def count(self) -> int:
        """Examples to train on."""

    @property
    def val_count(self) -> int:
        """Examples to score on; 0: there is no score."""

    def identity(self) -> dict[str, Any]:
        """Return what tells the data from others: a run goes on with the same alone."""

    @property
    def findings(self) -> tuple[Findings, Findings]:
        """What a look through training and validation data found."""

    def prepare(self) -> Iterator[Prepared]:
        """Do what is to be done once before the first batch, yielding how far it is."""

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the indices of all examples as an epoch takes them."""

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these examples in an epoch; called in threads."""

    def score(self) -> Scores:
        """Score the model as it stands."""


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
        self.check_data()
        self.captioner = build(options, self.examples.captions, self.needed)
        images = FeatureImages if options.cache_features else Images
        augmentation = Augmentation(kinds=options.augment, seed=options.seed) if options.augment else None
        self.images = images(self.examples, self.captioner, augmentation)
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
        yield from self.images.prepare()
        yield from self.val_images.prepare()
        self.rows = self.encode(self.examples)

    def encode(self, examples: Examples) -> Rows:
        """Return the captions of each example as tokens, with places for the image where the model has some."""
        captioner = self.captioner
        encode = partial(
            encode_captions,
            tokenizer=_words(captioner),
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

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these images, each with all its captions, as they are to be seen in an epoch."""
        images = self.images
        rows = [self.rows.of(index, mirrored=images.mirrored(index, epoch)) for index in indices]
        return image_batch([images.load(index, epoch) for index in indices], rows, start=len(self.start))

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


class MaskedTask(CaptionTask):
    """Images with captions; judged by hidden words and cells of others."""

    objective: Masked

    def build_objective(self) -> Masked:
        """Return what is learned."""
        config, preprocessing = self.captioner.model.config, self.captioner.preprocessing
        grid, _ = config.image_shape(preprocessing.height, preprocessing.width)
        if grid is None:
            raise UsageError(
                "merged tokens are no cells to hide (--objective masked, vision.merged_tokens above 0); merge none"
            )
        words = _words(self.captioner)
        if config.placeholder_id == words.pad_id:
            raise UsageError(
                f"a hidden word would be taken for the image (fusion.placeholder_id {words.pad_id}, "
                f"the tokenizer's <pad> {words.pad_id}); use another placeholder"
            )
        objective = Masked(
            self.captioner.model,
            words,
            grid=grid,
            pixels=(config.vision.channels, preprocessing.height, preprocessing.width),
            label_smoothing=self.options.label_smoothing,
        )
        return objective.to(self.captioner.device)

    def prepare(self) -> Iterator[Prepared]:
        """Have the images prepared, and turn all captions into tokens."""
        yield from super().prepare()
        self.val_rows = self.encode(self.val_examples)

    def score(self) -> Scores:
        """Score what the model makes of hidden words and cells of the validation images."""
        start = len(self.start)
        stream = (
            image_batch([self.val_images.load(i) for i in indices], [self.val_rows[i] for i in indices], start=start)
            for indices in chunks(self.val_count)
        )
        return score_masked(self.objective, stream)


class LanguageTask:
    """Sentences without images; judged by the perplexity of others."""

    unit = "sentences"
    untrained = ("vision.", "connector.")

    def __init__(self, options: TrainOptions) -> None:
        self.seed = options.seed
        self.findings = Findings(options.max_errors), Findings(options.max_errors)
        data, val = self.findings
        self.sentences = open_sentences(options.data, images=options.images, findings=data)
        self.val_sentences: list[str] = []
        if options.val:
            self.val_sentences = open_sentences(options.val, images=options.images, split="val", findings=val)
        self.count, self.val_count = len(self.sentences), len(self.val_sentences)
        self.captioner = build(options, [self.sentences])
        model = self.captioner.model
        if not model.config.cacheable:
            raise UsageError(
                "a readout at the image needs one (--objective language, fusion.visibility bidirectional); "
                "use another visibility"
            )
        self.objective = Language(model, label_smoothing=options.label_smoothing)

    def identity(self) -> dict[str, Any]:
        """Return number and digest of training and validation sentences."""
        sets = {"data": self.sentences, "val": self.val_sentences}
        return {name: data_identity(len(texts), texts.__getitem__) for name, texts in sets.items()}

    def prepare(self) -> Iterator[Prepared]:
        """Turn sentences into tokens."""
        self.rows, self.val_rows = self._encode(self.sentences), self._encode(self.val_sentences)
        return iter(())

    def _encode(self, sentences: Sequence[str]) -> list[Row]:
        captioner, config = self.captioner, self.captioner.model.config
        start = [index for index in captioner.encode_prompt(None).ids if index != config.placeholder_id]
        length, end_id = config.text.max_length, captioner.end_id
        return encode_captions([sentences], _words(captioner), length, start=start, end_id=end_id)[0]

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the indices of all sentences as an epoch takes them."""
        return shuffled(self.count, seed=self.seed, epoch=epoch)

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these sentences, which are the same in every epoch."""
        keys = tuple(shown(self.sentences[index]) for index in indices)
        return Batch(keys=keys, rows=tuple(self.rows[index] for index in indices))

    def score(self) -> Scores:
        """Score the validation sentences by perplexity."""
        return score_language(self.captioner.model, self.val_rows)


def _described(examples: Examples) -> Callable[[int], list[str]]:
    return lambda index: [Path(examples[index].key).name, *examples[index].captions]


def _words(captioner: Captioner) -> Tokenizer:
    assert captioner.tokenizer is not None, "a model without words reached training"
    return captioner.tokenizer


TASKS: dict[str, Callable[[TrainOptions], Task]] = {
    "caption": CaptionTask,
    "caption+contrastive": ContrastiveTask,
    "masked": MaskedTask,
    "language": LanguageTask,
    "scst": SelfCriticalTask,
}
