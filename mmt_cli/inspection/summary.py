"""What a checkpoint or preset is made of: its tensors by module and by modality."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmt_cli.checkpoint.header import TensorInfo, uncollected
from mmt_cli.inspection.contents import Contents, look

if TYPE_CHECKING:
    from mmt_cli.checkpoint.reference import HubOptions

Modality = Literal["vision", "connector", "text", "cross"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

_DATA_FLOW = ("vision", "connector", "prompt_encoder", "text", "fusion", "blocks", "head", "contrastive")
# What the tensors of a top-level module work on; those of the others, above all of the blocks, on the text.
_MODALITY_OF: dict[str, Modality] = {"vision": "vision", "connector": "connector", "fusion": "connector"}
# Parts that work on something else than the module they stand in; the experts' names mean that only in some modules.
_CROSS: dict[str, Modality] = {"cross_attention": "cross", "cross_mlp": "cross"}
_EXPERTS: dict[str, Modality] = {"image": "vision"}
_WITH_EXPERTS = ("blocks", "contrastive")
_BUFFERS = ("running_mean", "running_var", "projection")  # the last are the directions of a Performer, drawn once
# A tensor of one of these names belongs to the module before it; any other is a row of its own, such as `positions`.
_MEMBERS = ("weight", "bias", *_BUFFERS)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor: its name split at the dots (ours, where the family is known), and what the header says of it."""

    path: tuple[str, ...]
    modality: Modality | None
    info: TensorInfo

    @property
    def parameters(self) -> int:
        """Elements that training changes: those of buffers, such as batch-norm statistics, are none."""
        return 0 if self.path[-1] in _BUFFERS else self.info.parameters

    def to_json(self) -> dict[str, Any]:
        """Return the record of a tensor, under the name that it has in the file."""
        return {
            "name": self.info.name,
            "modality": self.modality,
            "dtype": self.info.dtype,
            "shape": list(self.info.shape),
            "parameters": self.parameters,
            "bytes": self.info.nbytes,
        }

    def place(self, depth: int) -> tuple[tuple[str, ...], str]:
        """Return the module that stands for this tensor at `depth`, and what of it, where that is only a part."""
        module = self.path[:-1] if self.path[-1] in _MEMBERS and len(self.path) > 1 else self.path
        apart = None if self.modality is None else _apart(self.path)
        if apart is None or apart in module[:depth]:
            return module[:depth], ""
        # Such a part stands by itself at every depth, or modules would be of two modalities.
        between = ".*" if module.index(apart) > depth else ""
        return module[:depth], f"{between}.{apart}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Totals over some tensors.

    Attributes:
        name: dotted name of the module; `*` stands for all names there may be at its place.
        modality: None where the tensors' names are not ours, or of several modalities.
        parameters: elements that training changes.
        dtype: as safetensors spells it; several are joined, the one with most bytes first.
        nbytes: size of all tensors, buffers included.
        shape: of its one tensor, or of its matrix; None of a module with several.
    """

    name: str
    modality: Modality | None
    parameters: int
    dtype: str
    nbytes: int
    shape: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the contract's record of a module."""
        return {
            "name": self.name,
            "modality": self.modality,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "bytes": self.nbytes,
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the module tree: a module, or the sum over those indented below it."""

    indent: int
    label: str
    part: Part
    is_sum: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that the header of a checkpoint, or the shape of a preset, tells."""

    model: str
    format: str
    entries: tuple[Entry, ...]
    metadata: dict[str, str]

    @cached_property
    def total(self) -> Part:
        """The sum over everything."""
        return _part(self.model, self.entries)

    @property
    def ordered(self) -> list[Entry]:
        """The tensors in the order of the modules."""
        return sorted(self.entries, key=lambda entry: _order(entry.path))

    def modalities(self) -> list[Part]:
        """Return the sums by modality, in the order of the data's flow; none where modalities are unknown."""
        groups = {name: [entry for entry in self.entries if entry.modality == name] for name in MODALITIES}
        return [_part(name, members) for name, members in groups.items() if members]

    def modules(self, depth: int) -> list[Part]:
        """Return modules down to `depth` names deep; each tensor is in exactly one, so that they add up."""
        return [row.part for row in self.tree(depth) if not row.is_sum]

    def tree(self, depth: int) -> list[Row]:
        """Return the modules down to `depth`, each group of them below a row with its sum."""
        # By module and by what of it is meant, which is None for the sum over everything below it.
        members: dict[tuple[tuple[str, ...], str | None], list[Entry]] = {}
        places = [entry.place(depth) for entry in self.entries]
        inner = {module[:level] for module in {module for module, _ in places} for level in range(1, len(module))}
        for entry, (module, suffix) in zip(self.entries, places, strict=True):
            above = (module[:level] for level in range(1, len(module) + 1))
            for key in ((module, suffix), *((name, None) for name in above if name in inner)):
                members.setdefault(key, []).append(entry)
        rows = []
        for module, which in sorted(members, key=lambda key: (_order(key[0]), key[1] or "", key[1] is not None)):
            # A module with tensors of its own beside its submodules: the first row is the sum, the second is these.
            own = which == "" and (module, None) in members
            rows.append(
                Row(
                    indent=len(module) - (not own),
                    label="(own)" if own else module[-1] + (which or ""),
                    part=_part(".".join(module) + (which or ""), members[module, which]),
                    is_sum=which is None,
                )
            )
        return rows

    def groups(self, depth: int) -> list[tuple[str, list[Entry]]]:
        """Return the tensors of each of the `modules` of that depth, by the module's name."""
        found: dict[tuple[tuple[str, ...], str], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.place(depth), []).append(entry)
        return [(".".join(key[0]) + key[1], found[key]) for key in sorted(found, key=lambda k: (_order(k[0]), k[1]))]

    def to_json(self, depth: int) -> dict[str, Any]:
        """Return the contract's record; tensors keep the names they have in the file."""
        total = self.total
        return {
            "model": self.model,
            "format": self.format,
            "parameters": total.parameters,
            "bytes": total.nbytes,
            "modules": [part.to_json() for part in self.modules(depth)],
            "tensors": [entry.to_json() for entry in self.entries],
            "metadata": self.metadata,
        }


def summarise(reference: str, settings: Mapping[str, Any] | None = None, hub: "HubOptions | None" = None) -> Summary:
    """Sum up a model by its headers; arguments and errors are those of `look`."""
    return summary_of(look(reference, settings, hub))


@uncollected()
def summary_of(contents: Contents) -> Summary:
    """Sum up what has been looked into; tensors of no known family are of no modality."""
    entries = []
    for name, info in contents.tensors:
        path = _split(name)
        entries.append(Entry(path=path, modality=_modality(path) if contents.known else None, info=info))
    return Summary(model=contents.name, format=contents.format, entries=tuple(entries), metadata=contents.metadata)


def _split(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _modality(path: tuple[str, ...]) -> Modality:
    """Return what a tensor of our own naming works on."""
    apart = _apart(path)
    return _MODALITY_OF.get(path[0], "text") if apart is None else (_CROSS | _EXPERTS)[apart]


def _apart(path: tuple[str, ...]) -> str | None:
    """Return the first name in the path that is of another modality than the module it stands in."""
    names = {*_CROSS, *_EXPERTS} if path[0] in _WITH_EXPERTS else {*_CROSS}
    return next((name for name in path if name in names), None)


def _part(name: str, members: Iterable[Entry]) -> Part:
    entries = list(members)
    modalities = {entry.modality for entry in entries}
    size_of: dict[str, int] = {}
    for entry in entries:
        size_of[entry.info.dtype] = size_of.get(entry.info.dtype, 0) + entry.info.nbytes
    return Part(
        name=name,
        modality=modalities.pop() if len(modalities) == 1 else None,
        parameters=sum(entry.parameters for entry in entries),
        dtype=", ".join(sorted(size_of, key=lambda dtype: -size_of[dtype])),
        nbytes=sum(size_of.values()),
        shape=_shape_of(entries),
    )


def _shape_of(entries: Sequence[Entry]) -> tuple[int, ...] | None:
    """Return the shape of a module's weight: of what it has alone, or has beside a bias and running statistics."""
    if len(entries) > len(_MEMBERS) or len({entry.path[:-1] for entry in entries}) > 1:
        return None
    if len(entries) == 1:
        return entries[0].info.shape
    return next((entry.info.shape for entry in entries if entry.path[-1] == _MEMBERS[0]), None)


def _order(module: tuple[str, ...]) -> tuple[int, list[tuple[bool, int, str]]]:
    """Return the sort key: parts as data flows through them, numbers by their value."""
    rank = _DATA_FLOW.index(module[0]) if module[0] in _DATA_FLOW else len(_DATA_FLOW)
    # A longer number is the larger one; int() refuses those of thousands of digits.
    return rank, [(not part.isdecimal(), len(part) if part.isdecimal() else 0, part) for part in module]
