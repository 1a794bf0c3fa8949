"""What can be wrong with a checkpoint, one line each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from mmt_cli.errors import MmtError

Part = Literal["header", "shards", "config", "tensors", "values", "tokenizer", "images", "generation"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        part: of the checkpoint.
        tensor: its name, where the finding is about one.
        message: what is wrong, on one line.
    """

    part: Part
    tensor: str | None
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        return asdict(self)


class Findings(list[Finding]):
    """Those of one checkpoint, in the order they were met."""

    def add(self, part: Part, message: str, tensor: str | None = None) -> None:
        """Note one."""
        self.append(Finding(part=part, tensor=tensor, message=" ".join(message.split())))

    @contextmanager
    def noting(self, part: Part) -> Iterator[None]:
        """Turn an error of ours into a finding."""
        try:
            yield
        except MmtError as error:
            self.add(part, str(error))

    def tried(self, part: Part, read: Callable[[], _T]) -> _T | None:
        """Return what `read` returns, None where that raises an error of ours, which is noted."""
        with self.noting(part):
            return read()
        return None
