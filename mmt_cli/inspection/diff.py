"""Two checkpoints side by side: what is the same, what has changed and how far, what only one of them has.

N numbers of one piece.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmt_cli.checkpoint.header import TensorInfo
from mmt_cli.checkpoint.keymap import Origin
from mmt_cli.inspection.contents import Contents
from mmt_cli.inspection.summary import Entry, Modality, Summary, summary_of
from mmt_cli.inspection.values import PIECE, pieces

Status = Literal["same", "changed", "only here", "only there"]


@dataclass(kw_only=True)
class Distance:
    """Running sums over pairs of numbers."""

    count: int = 0
    here: float = 0.0  # sums of squares
    there: float = 0.0
    apart: float = 0.0
    product: float = 0.0
    largest: float = 0.0  # absolute difference
    equal: bool = True
    rounded: bool = True  # one side is what rounding to its dtype makes of the other

    def add(self, a_N: Tensor, b_N: Tensor) -> None:
        """Take in one piece of both sides, in the dtypes they are stored in."""
        self.equal &= _alike(a_N, b_N)
        self.rounded &= _are_rounded(a_N, b_N)
        a_N, b_N = a_N.double(), b_N.double()
        away_N = a_N - b_N
        self.count += len(a_N)
        self.here += float(a_N.square().sum())
        self.there += float(b_N.square().sum())
        self.apart += float(away_N.square().sum())
        self.product += float((a_N * b_N).sum())
        if len(away_N):
            found = float(away_N.abs().max())
            self.largest = found if math.isnan(found) else max(self.largest, found)

    def merge(self, other: "Distance") -> None:
        """Take in the sums of another tensor."""
        self.count += other.count
        self.here += other.here
        self.there += other.there
        self.apart += other.apart
        self.product += other.product
        self.largest = other.largest if math.isnan(other.largest) else max(self.largest, other.largest)
        self.equal &= other.equal
        self.rounded &= other.rounded

    @property
    def relative(self) -> float:
        """Length of the difference over that of this side: relative L2."""
        return math.sqrt(self.apart / self.here) if self.here else 0.0 if not self.apart else math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both sides; 1 where one of them is nothing but zeros, as is the other."""
        both = math.sqrt(self.here) * math.sqrt(self.there)
        return self.product / both if both else float(self.here == self.there)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What became of a module.

    Attributes:
        name: of it, in our terms where both families are known.
        modality: what it works on.
        status: the same where all numbers are equal, or where those of one side are the other's, rounded to its dtype.
        parameters: numbers that both sides have, or that the one side has.
        distance: between both; None where one side is missing.
        shapes: of the first tensor whose shapes differ, here and there; its numbers are not compared.
    """

    name: str
    modality: Modality | None
    status: Status
    parameters: int
    distance: Distance | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def is_rounded(self) -> bool:
        """Whether the dtypes alone make a difference."""
        return self.status == "same" and self.distance is not None and not self.distance.equal

    def to_json(self) -> dict[str, Any]:
        """Return the record; what cannot be written as a number is null."""
        found = self.distance if self.distance is not None and self.distance.count else None
        figures = {
            "relative_l2": None if found is None else _finite(found.relative),
            "cosine": None if found is None else _finite(found.cosine),
            "max": None if found is None else _finite(found.largest),
        }
        shapes = None if self.shapes is None else [list(shape) for shape in self.shapes]
        return {
            "name": self.name,
            "modality": self.modality,
            "status": self.status,
            "rounded": self.is_rounded,
            "parameters": self.parameters,
            **figures,
            "shapes": shapes,
        }


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One of both checkpoints, its tensors by the names that both sides have."""

    contents: Contents
    origins: dict[str, Origin]
    infos: dict[str, TensorInfo]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape in our layout, without leading ones."""
        origin = self.origins[name]
        shapes = [self.infos[part].shape for part in origin.names]
        shape = shapes[0]
        if len(shapes) > 1:
            shape = (sum(part[0] if part else 1 for part in shapes), *shape[1:])
        if origin.transposed:
            shape = shape[::-1]
        while shape and shape[0] == 1:
            shape = shape[1:]
        return shape

    def numbers(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor's numbers in the order of our layout."""
        origin = self.origins[name]
        parts = [self.infos[part] for part in origin.names]
        if not origin.transposed:
            for info in parts:
                yield from pieces(self.contents, info)
            return
        [info] = parts  # a matrix that lies the other way round has to be there as a whole
        stored = torch.cat([*pieces(self.contents, info)]) if info.parameters else torch.empty(0)
        yield from torch.split(stored.view(info.shape).T.contiguous().view(-1), PIECE)


def diff(here: Contents, there: Contents, *, depth: int) -> list[Difference]:
    """Compare two checkpoints module by module, across dtypes and across layouts of one model.

    Args:
        here: the one; modules come in its order.
        there: the other.
        depth: names deep of the modules.

    Raises:
        ModelError: a file cannot be read any more.
        UsageError: one is a preset.
    """
    for contents in (here, there):
        contents.need_weights("--diff")
    known = here.known and there.known
    sides = _side(here, known=known), _side(there, known=known)
    rows: list[Difference] = []
    for name, entries in _joined(sides, known=known).groups(depth):
        rows += _rows(name, entries, *sides)
    return rows


def _side(contents: Contents, *, known: bool) -> _Side:
    infos = {info.name: info for _, info in contents.tensors}
    own = {name: Origin((name,)) for name in infos}
    origins = contents.source.origins if known and contents.source is not None else own
    return _Side(contents=contents, origins=origins, infos=infos)


def _joined(sides: tuple[_Side, _Side], *, known: bool) -> Summary:
    """Return all tensors of both sides as those of one model."""
    infos: dict[str, TensorInfo] = {}
    for side in sides:
        for name, origin in side.origins.items():
            infos.setdefault(name, side.infos[origin.names[0]])
    both = Contents(name="", format="", tensors=tuple(infos.items()), known=known, metadata={})
    return summary_of(both)


def _rows(module: str, entries: Sequence[Entry], here: _Side, there: _Side) -> Iterator[Difference]:
    """Yield what both sides have of a module, then what only one has."""
    names = [".".join(entry.path) for entry in entries]
    modalities = {entry.modality for entry in entries}
    modality = modalities.pop() if len(modalities) == 1 else None
    shared = [name for name in names if name in here.origins and name in there.origins]
    total, shapes = Distance(), None
    for name in shared:
        mine, theirs = here.shape(name), there.shape(name)
        if mine == theirs:
            total.merge(_distance(here.numbers(name), there.numbers(name)))
        else:
            shapes = shapes or (mine, theirs)
    if shared:
        status: Status = "same" if shapes is None and (total.equal or total.rounded) else "changed"
        count = _count(here, shared)
        yield Difference(name=module, modality=modality, status=status, parameters=count, distance=total, shapes=shapes)
    ends: tuple[tuple[_Side, _Side, Status], ...] = ((here, there, "only here"), (there, here, "only there"))
    for side, other, where in ends:
        alone = [name for name in names if name in side.origins and name not in other.origins]
        if alone:
            yield Difference(name=module, modality=modality, status=where, parameters=_count(side, alone))


def _count(side: _Side, names: Sequence[str]) -> int:
    return sum(side.infos[part].parameters for name in names for part in side.origins[name].names)


def _distance(here: Iterator[Tensor], there: Iterator[Tensor]) -> Distance:
    """Compare two streams of as many numbers, whose pieces may be cut elsewhere."""
    found = Distance()
    a_N, b_N = next(here, None), next(there, None)
    while a_N is not None and b_N is not None:
        count = min(len(a_N), len(b_N))
        found.add(a_N[:count], b_N[:count])
        a_N = a_N[count:] if count < len(a_N) else next(here, None)
        b_N = b_N[count:] if count < len(b_N) else next(there, None)
    return found


def _are_rounded(a_N: Tensor, b_N: Tensor) -> bool:
    """Say whether two pieces of real numbers are equal in the coarser of both dtypes."""
    if not (a_N.is_floating_point() and b_N.is_floating_point()):
        return _alike(a_N, b_N)
    coarse = max(a_N.dtype, b_N.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return _alike(a_N.to(coarse), b_N.to(coarse))


def _alike(a_N: Tensor, b_N: Tensor) -> bool:
    """Say whether all numbers are equal, what is none among them."""
    a_N, b_N = a_N.double(), b_N.double()
    return bool(((a_N == b_N) | (a_N.isnan() & b_N.isnan())).all())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
