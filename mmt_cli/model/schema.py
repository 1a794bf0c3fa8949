"""Frozen nested dataclasses that are checked when built, JSON in and out: what every config is made of.

A size out of bounds, an unknown key or an impossible pair raises `ConfigError`, naming both values.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from mmt_cli.errors import ConfigError, shown

T = TypeVar("T")


def bounded(low: float, high: float, default: Any = dataclasses.MISSING) -> Any:
    """A number field that must lie in [low, high]."""
    return field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base: type and bound checks at construction, JSON in and out."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            _check_type(f"{type(self).__name__}.{item.name}", value, hints[item.name])
            low, high = item.metadata.get("bounds", (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise ConfigError(f"{item.name} is out of bounds ({shown(value)}, allowed {low} to {high}); change it")
        self.check()

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""

    def to_json(self) -> dict[str, Any]:
        """Return the whole tree as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build the tree from JSON values.

        Raises:
            ConfigError: unknown or missing keys, wrong types, sizes out of bounds, impossible pairs.
        """
        return _build(cls, data, "config")


def _check_type(name: str, value: object, hint: Any) -> None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            fits = isinstance(value, str) and value in typing.get_args(option)
        elif option is float:
            # An int too large for a float is left to the bounds.
            fits = type(value) is int or (type(value) is float and math.isfinite(value))
        else:
            fits = type(value) is option
        if fits:
            return
    allowed = " or ".join(" | ".join(typing.get_args(o)) or getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{name} has the wrong value (found {shown(value)}, expected {allowed}); change it")


def _build(cls: type[T], data: object, path: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} is no object (found {type(data).__name__}, expected keys of {cls.__name__}); mend it"
        )
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"unknown key ({shown(unknown[0])} in {path}, known: {', '.join(fields)}); rename it")
    values = {key: _value(value, hints[key], f"{path}.{key}") for key, value in data.items()}
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"a key is missing ({path}.{missing[0]}, present: {', '.join(values) or 'none'}); add it")
    return typing.cast("Callable[..., T]", cls)(**values)


def _value(value: object, hint: Any, path: str) -> object:
    """Turn a JSON object into the dataclass that `hint` names; a union chooses by its `kind`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    configs = [o for o in options if isinstance(o, type) and issubclass(o, Config)]
    if not configs or not isinstance(value, dict):
        return value
    if len(configs) == 1:
        return _build(configs[0], value, path)
    kinds = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in configs}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"unknown kind ({path}.kind {shown(kind)}, known: {', '.join(kinds)}); choose one of them")
    return _build(kinds[kind], value, path)
