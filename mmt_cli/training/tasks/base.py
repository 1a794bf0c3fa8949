"""What the loop asks of a task."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.training.batches import Batch
from mmt_cli.training.evaluate import Scores
from mmt_cli.training.findings import Findings
from mmt_cli.training.images import Prepared
from mmt_cli.training.objectives.base import Objective
from mmt_cli.training.order import Job, Position


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

    def follow(self, jobs: Callable[[Position], Iterator[Job]], start: Position) -> None:
        """Learn beforehand what `batch` will be asked for.

        Args:
            jobs: place in the data → all jobs from there on.
            start: of the run.
        """

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return the batch of these examples in an epoch; called in threads."""

    def score(self) -> Scores:
        """Score the model as it stands."""


def words_of(captioner: Captioner) -> Tokenizer:
    """Return the tokenizer of a captioner that has one."""
    assert captioner.tokenizer is not None, "a model without words reached training"
    return captioner.tokenizer
