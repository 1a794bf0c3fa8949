"""How far a run is, and what must be the same for it to go on: all of its state that is no tensor."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import Position
from mmt_cli.training.parallel import full_tensor

FORMAT = 1
_SAMPLE = 10_000  # examples that tell one data set from another
# Options that change no result, or whose effect is compared itself: data by what they hold, lengths in steps.
_FREE = {
    *("data", "val", "images", "max_errors", "out", "epochs", "steps", "warmup", "resume", "report_to", "log_every"),
    *("save_every", "keep", "keep_best", "device", "grad_checkpointing", "parallel", "processes"),
}
_SPELLED = {"settings": "set"}
_PROCESSES = "processes"


@dataclass(kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        position: where the data stand.
        scored: the step of the last evaluation, 0 for none.
        rank: its score, larger is better.
        figures: its figures.
        intervals: how far these may be off, where that is known.
        best: the largest score so far.
        waited: evaluations since.
        losses: of each step since the last logged one.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    scored: int = 0
    rank: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it; `rank` only where this very step was scored."""
        return {
            **dataclasses.asdict(self),
            "last_rank": self.rank,
            "rank": self.rank if self.scored == self.step else None,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Progress":
        """Return what `to_json` gave.

        Raises:
            ModelError: something is missing.
        """
        record = {"intervals": {}, **record}  # which older runs do not have
        try:
            values = {field.name: record[field.name] for field in dataclasses.fields(cls)}
            values |= {"position": Position(**record["position"]), "rank": record["last_rank"]}
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"the saved state is broken ({shown(str(error))} missing); go on with an older one"
            ) from error
        return cls(**values)


def identity(options: TrainOptions, **more: Any) -> dict[str, Any]:
    """Return what must be the same for a run to go on: the options that change results, and `more`."""
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in _FREE}
    named = {"--" + _SPELLED.get(name, name).replace("_", "-"): _plain(value) for name, value in values.items()}
    team = {_PROCESSES: options.processes} if options.processes > 1 else {}
    return {"format": FORMAT, **named, **team, **more}


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise UsageError for the first thing in which a run differs from the one that it shall go on with.

    At another number of processes, steps of as many examples are the same.
    """
    if saved.get(_PROCESSES) != now.get(_PROCESSES):
        saved, now = _by_examples(saved), _by_examples(now)
    for name in sorted(saved.keys() | now.keys(), key=lambda name: (not name.startswith("--"), name)):
        if saved.get(name) != now.get(name):
            there, here = _difference(saved.get(name), now.get(name))
            raise UsageError(
                f"the saved run differs ({name} {here}, in {folder} {there}); give the same, or choose a new --out"
            )


def _by_examples(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity with what makes a step put together."""
    parts = ("--batch-size", "--grad-accum", _PROCESSES)
    examples = math.prod(identity.get(name, 1) for name in parts)
    product = " x ".join(parts)
    return {**{name: value for name, value in identity.items() if name not in parts}, product: examples}


def _difference(there: Any, here: Any) -> tuple[str, str]:
    """Return the two values as a message shows them; of objects the first part that differs."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *there]:
            if there.get(key) != here.get(key):
                inner = _difference(there.get(key), here.get(key))
                return f"{key} {inner[0]}", f"{key} {inner[1]}"
    return tuple("none" if value is None else shown(value) for value in (there, here))  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    """Return an option's value as JSON gives it back."""
    return json.loads(json.dumps(dict(value) if isinstance(value, Mapping) else value, default=str))


def data_identity(count: int, describe: Callable[[int], str | Sequence[str]]) -> dict[str, Any]:
    """Return the number of examples, and a digest of up to 10,000 of them at equal distances.

    Args:
        count: of all.
        describe: index → what the example is: its name, its texts.
    """
    digest = hashlib.sha256()
    for index in range(0, count, max(1, count // _SAMPLE)):
        digest.update(json.dumps(describe(index)).encode() + b"\n")
    return {"count": count, "sha256": digest.hexdigest()[:16]}


def tensors_identity(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = full_tensor(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8)
        buffer = bytearray(len(plain))
        if buffer:
            torch.frombuffer(buffer, dtype=torch.uint8).copy_(plain)
        digest.update(buffer)
    return digest.hexdigest()[:16]
