"""Rename rules: how the tensor names of a checkpoint become ours.

A table of (pattern, replacement); the first pattern that matches a whole name decides. Replacement None means
knowingly dropped. A name that no rule matches is an error, and so is a tensor of ours that nothing fills.
"""

import re
from collections.abc import Iterable, Sequence

from mmt_cli.errors import ModelError, shown

Rules = Sequence[tuple[str, str | None]]


def map_names(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """Return {their name: our name} without the dropped ones.

    Raises:
        ModelError: a name that no rule knows, or two names that become one.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    mapped: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in names:
        match, replacement = next(((m, r) for p, r in compiled if (m := p.fullmatch(name))), (None, None))
        if match is None:
            raise ModelError(
                f"unknown tensor ({shown(name)}, no rule of {len(compiled)} knows it); use a matching checkpoint"
            )
        if replacement is None:
            continue
        ours = match.expand(replacement)
        if ours in origin:
            both = f"{shown(origin[ours])} and {shown(name)}, both {shown(ours)}"
            raise ModelError(f"two tensors have one place ({both}); remove one")
        origin[ours] = name
        mapped[name] = ours
    return mapped
