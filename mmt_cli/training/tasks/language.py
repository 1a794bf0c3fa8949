"""Sentences without images: the next word."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmt_cli.errors import UsageError, shown
from mmt_cli.training.batches import Batch, Row, encode_captions
from mmt_cli.training.evaluate import Scores, score_language
from mmt_cli.training.findings import Findings
from mmt_cli.training.images import Prepared
from mmt_cli.training.objectives.caption import Language
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import Job, Position, shuffled
from mmt_cli.training.sentences import open_sentences
from mmt_cli.training.setup import build
from mmt_cli.training.state import data_identity
from mmt_cli.training.tasks.base import words_of


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
        return encode_captions([sentences], words_of(captioner), length, start=start, end_id=end_id)[0]

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the indices of all sentences as an epoch takes them."""
        return shuffled(self.count, seed=self.seed, epoch=epoch)

    def follow(self, jobs: Callable[[Position], Iterator[Job]], start: Position) -> None:
        """Do nothing: sentences lie in memory."""

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these sentences, which are the same in every epoch."""
        keys = tuple(shown(self.sentences[index]) for index in indices)
        return Batch(keys=keys, rows=tuple(self.rows[index] for index in indices))

    def score(self) -> Scores:
        """Score the validation sentences by perplexity."""
        return score_language(self.captioner.model, self.val_rows)
