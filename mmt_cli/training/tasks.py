"""What a run learns from, what it learns and what it is judged by: all in which objectives differ to the loop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import UsageError, shown
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.training.batches import Batch, Row, encode_captions, image_batch
from mmt_cli.training.data import Example, open_dataset
from mmt_cli.training.evaluate import Evaluator, Scores, chunks, score_language, score_masked
from mmt_cli.training.images import FeatureImages, Images, Prepared
from mmt_cli.training.objectives.base import Objective
from mmt_cli.training.objectives.caption import Caption, Language
from mmt_cli.training.objectives.contrastive import CaptionContrastive
from mmt_cli.training.objectives.masked import Masked
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.origin import before_answer
from mmt_cli.training.sentences import open_sentences
from mmt_cli.training.setup import build

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

    def prepare(self) -> Iterator[Prepared]:
        """Do what is to be done once before the first batch, yielding how far it is."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these examples; called in threads."""

    def score(self) -> Scores:
        """Score the model as it stands."""


class CaptionTask:
    """Images with captions; judged by the captions of others."""

    unit = "images"
    untrained: tuple[str, ...] = ()

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.examples = open_dataset(options.data)
        self.val_examples: list[Example] = open_dataset(options.val) if options.val else []
        self.count, self.val_count = len(self.examples), len(self.val_examples)
        self.check_data()
        self.captioner = build(options, [example.captions for example in self.examples], self.needed)
        images = FeatureImages if options.cache_features else Images
        self.images, self.val_images = (images(e, self.captioner) for e in (self.examples, self.val_examples))
        self.objective = self.build_objective()

    def check_data(self) -> None:
        """Raise UsageError where the objective cannot be learned from the data."""

    def needed(self, config: ModelConfig) -> ModelConfig:
        """Return the config with what the objective needs."""
        return config

    def build_objective(self) -> Objective:
        """Return what is learned."""
        return Caption(self.captioner.model, self.images.see, label_smoothing=self.options.label_smoothing)

    def prepare(self) -> Iterator[Prepared]:
        """Have the images prepared, and turn captions into tokens."""
        yield from self.images.prepare()
        yield from self.val_images.prepare()
        self.rows = self.encode(self.examples)

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """Return the captions of each example as tokens, with places for the image where the model has some."""
        captioner, captions = self.captioner, [example.captions for example in examples]
        length = captioner.model.config.text.max_length
        return encode_captions(
            captions,
            _words(captioner),
            length,
            start=self.start,
            end_id=captioner.end_id,
            before=before_answer(captioner),
        )

    @cached_property
    def start(self) -> tuple[int, ...]:
        """What each row begins with: all that the model reads before it writes, asked nothing by the user."""
        return self.captioner.encode_prompt(None).ids

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these images, each with all its captions."""
        return image_batch(indices, self.images.load, self.rows, start=len(self.start))

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
            image_batch(indices, self.val_images.load, self.val_rows, start=start) for indices in chunks(self.val_count)
        )
        return score_masked(self.objective, stream)


class LanguageTask:
    """Sentences without images; judged by the perplexity of others."""

    unit = "sentences"
    untrained = ("vision.", "connector.")

    def __init__(self, options: TrainOptions) -> None:
        self.sentences = open_sentences(options.data)
        self.val_sentences = open_sentences(options.val) if options.val else []
        self.count, self.val_count = len(self.sentences), len(self.val_sentences)
        self.captioner = build(options, [self.sentences])
        model = self.captioner.model
        if not model.config.cacheable:
            raise UsageError(
                "a readout at the image needs one (--objective language, fusion.visibility bidirectional); "
                "use another visibility"
            )
        self.objective = Language(model, label_smoothing=options.label_smoothing)

    def prepare(self) -> Iterator[Prepared]:
        """Turn sentences into tokens."""
        self.rows, self.val_rows = self._encode(self.sentences), self._encode(self.val_sentences)
        return iter(())

    def _encode(self, sentences: Sequence[str]) -> list[Row]:
        captioner, config = self.captioner, self.captioner.model.config
        start = [index for index in captioner.encode_prompt(None).ids if index != config.placeholder_id]
        length, end_id = config.text.max_length, captioner.end_id
        return encode_captions([sentences], _words(captioner), length, start=start, end_id=end_id)[0]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these sentences."""
        keys = tuple(shown(self.sentences[index]) for index in indices)
        return Batch(keys=keys, rows=tuple(self.rows[index] for index in indices))

    def score(self) -> Scores:
        """Score the validation sentences by perplexity."""
        return score_language(self.captioner.model, self.val_rows)


def _words(captioner: Captioner) -> Tokenizer:
    assert captioner.tokenizer is not None, "a model without words reached training"
    return captioner.tokenizer


TASKS: dict[str, Callable[[TrainOptions], Task]] = {
    "caption": CaptionTask,
    "caption+contrastive": ContrastiveTask,
    "masked": MaskedTask,
    "language": LanguageTask,
}
