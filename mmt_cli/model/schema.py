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
    """A number field, or a tuple of numbers, that must lie in [low, high]."""
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
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not low <= number <= high:
                    raise ConfigError(
                        f"{item.name} is out of bounds ({shown(number)}, allowed {low} to {high}); change it"
                    )
        self.check()

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""

    def to_json(self) -> dict[str, Any]:
        """Return the whole tree as JSON values."""
        return dataclasses.asdict(self, dict_factory=_json_object)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Build the tree from JSON values.

        Raises:
            ConfigError: unknown or missing keys, wrong types, sizes out of bounds, impossible pairs.
        """
        return _build(cls, data, "config")


def _json_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def _check_type(name: str, value: object, hint: Any) -> None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not any(_fits(value, option) for option in options):
        allowed = " or ".join(map(_in_words, options))
        raise ConfigError(f"{name} has the wrong value (found {shown(value)}, expected {allowed}); change it")


def _fits(value: object, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return isinstance(value, str) and value in typing.get_args(option)
    if typing.get_origin(option) is tuple:  # of any length, all parts of one type
        return type(value) is tuple and all(_fits(part, typing.get_args(option)[0]) for part in value)
    if option is float:
        # An int too large for a float is left to the bounds.
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is option


def _in_words(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return " | ".join(typing.get_args(option))
    if typing.get_origin(option) is tuple:
        return f"a list of {_in_words(typing.get_args(option)[0])}"
    return str(getattr(option, "__name__", option))


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
    """Turn a JSON object into the dataclass that `hint` names, a list into a tuple.

    A union chooses by its `kind`, without one the first.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    configs = [o for o in options if isinstance(o, type) and issubclass(o, Config)]
    if not configs or not isinstance(value, dict):
        return value
    if len(configs) == 1:
        return _build(configs[0], value, path)
    kinds = {kind: c for c in configs for kind in typing.get_args(typing.get_type_hints(c)["kind"])}
    kind = value.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"unknown kind ({path}.kind {shown(kind)}, known: {', '.join(kinds)}); choose one of them")
    return _build(kinds[kind], value, path)
