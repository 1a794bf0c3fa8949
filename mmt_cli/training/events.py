"""What happens in a run, for whoever shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmt_cli.training.evaluate import Scores
from mmt_cli.training.images import Prepared


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is set up."""

    steps: int
    done: int  # of them, by the run that this one goes on with
    unit: str  # what one example is called, in the plural
    train_count: int
    val_count: int
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer step is done; the losses are means since the last logged step."""

    step: int
    loss: float  # in nats
    parts: Mapping[str, float]  # by name, where the loss has several
    lr: float
    per_s: float  # examples
    memory: int  # bytes at most so far, of the device
    logged: bool


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The validation set is scored; `best` when this is the best so far, now saved."""

    step: int
    scores: Scores
    best: bool


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The run ends before its time: as wished, or early since nothing is gained any more."""

    step: int
    folder: Path  # of the saved step
    wished: bool


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something that whoever started the run should know."""

    text: str


Event = Started | Prepared | Stepped | Evaluated | Stopped | Noted
