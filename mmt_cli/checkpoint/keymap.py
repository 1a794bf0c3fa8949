"""Rename rules: how the tensor names of a checkpoint become ours.

A table of rules, each a pair of templates. `{i}`, `{j}` stand for numbers, `{weight|bias}` for one of its alternatives,
`{*}` for anything. What stands on both sides is carried over. Alternatives that stand only on their side are the parts
of one tensor of ours, joined along its first dimension in this order: `{query|key|value}` → `qkv`. The first rule that
knows a name decides. `ours` None means knowingly dropped. A name that no rule knows is an error, and so is a tensor of
ours that nothing fills.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmt_cli.errors import ModelError, shown

_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        theirs: template of names in the checkpoint.
        ours: template of names in the model; None drops the tensor.
        transposed: the checkpoint holds the matrix as inputs x outputs (GPT-2's Conv1D).
    """

    theirs: str
    ours: str | None
    transposed: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The expression that their names match."""
        return _expression(self.theirs)

    @cached_property
    def parts(self) -> tuple[str, tuple[str, ...]] | None:
        """The slot whose alternatives are parts of one tensor of ours, and these; None where there is none."""
        if self.ours is None:
            return None
        alone = [slot for slot in _SLOT.findall(self.theirs) if slot not in _SLOT.findall(self.ours)]
        assert len(alone) <= 1, f"two slots without a place: {self.theirs}"
        assert all("|" in slot for slot in alone), f"a slot without a place: {self.theirs}"
        return (alone[0], tuple(alone[0].split("|"))) if alone else None


Rules = Sequence[Rule]
Layouts = Sequence[tuple[str, str]]  # (expression for the beginning of a name, what stands there in the rules)


@dataclass(frozen=True)
class Origin:
    """Where a tensor of ours comes from: the checkpoint's tensors, joined along the first dimension."""

    names: tuple[str, ...]
    transposed: bool = False


def map_names(names: Iterable[str], rules: Rules, layouts: Layouts = ()) -> dict[str, Origin]:
    """Return {our name: its origin} for the names of a checkpoint, without the dropped ones.

    Args:
        names: of the checkpoint's tensors.
        rules: for one layout.
        layouts: how the names of other layouts begin, and how those begin in the one of the rules.

    Raises:
        ModelError: a name that no rule knows, two names that have one place, or a tensor without all of its parts.
    """
    found: dict[str, dict[str, tuple[str, Rule]]] = {}
    for name in names:
        canonical = _canonical(name, layouts)
        rule, match = next(((r, m) for r in rules if (m := r.pattern.fullmatch(canonical))), (None, None))
        if rule is None or match is None:
            known = f"no rule of {len(rules)} knows it"
            raise ModelError(f"unknown tensor ({shown(name)}, {known}); use a matching checkpoint")
        if rule.ours is None:
            continue
        values = _values(_SLOT.findall(rule.theirs), match)
        ours = _filled(rule.ours, values)
        part = "" if rule.parts is None else values[rule.parts[0]]
        before = found.setdefault(ours, {}).setdefault(part, (name, rule))
        if before[0] != name:
            both = f"{shown(before[0])} and {shown(name)}, both {shown(ours)}"
            raise ModelError(f"two tensors have one place ({both}); remove one")
    return {ours: _joined(parts) for ours, parts in found.items()}


def unknown_names(names: Iterable[str], rules: Rules, layouts: Layouts = ()) -> list[str]:
    """Return those names of a checkpoint that no rule knows; the arguments are those of `map_names`."""
    return [name for name in names if not any(rule.pattern.fullmatch(_canonical(name, layouts)) for rule in rules)]


def _canonical(name: str, layouts: Layouts) -> str:
    for beginning, replacement in layouts:
        canonical, changed = re.subn(f"^(?:{beginning})", replacement, name)
        if changed:
            return canonical
    return name


def _joined(parts: Mapping[str, tuple[str, Rule]]) -> Origin:
    [rule] = {id(rule): rule for _, rule in parts.values()}.values()
    if rule.parts is None:
        return Origin(tuple(name for name, _ in parts.values()), rule.transposed)
    missing = [part for part in rule.parts[1] if part not in parts]
    if missing:
        some = shown(next(iter(parts.values()))[0])
        raise ModelError(f"a part of a tensor is missing ({missing[0]}, beside {some}); fetch the checkpoint again")
    return Origin(tuple(parts[part][0] for part in rule.parts[1]), rule.transposed)


def _expression(template: str) -> re.Pattern[str]:
    """Return a template as an expression with a group for each slot."""
    pieces = _SLOT.split(template)  # text and slots by turns
    return re.compile("".join(_group(piece) if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))


def _group(slot: str) -> str:
    if slot == "*":
        return "(.*)"
    return f"({slot})" if "|" in slot else r"(\d+)"


def _values(slots: Iterable[str], match: re.Match[str]) -> dict[str, str]:
    return dict(zip(slots, match.groups(), strict=True))


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: values[slot.group(1)], template)
