"""Checks of the values that come out of a checkpoint's image preprocessing file."""

import dataclasses
from typing import Any

from mmt_cli.errors import ModelError, shown

MAX_SIDE = 8192  # pixels of each side of what a model reads
MAX_PIXELS = 2**27  # of any image made on the way; at Pillow's four bytes each, half a gibibyte


def bad_value(name: str, value: object, allowed: str) -> ModelError:
    """Return the error for a value that is not what it may be."""
    return ModelError(
        f"{name} of the image preprocessing is {shown(value)}, not {allowed}; check the checkpoint's preprocessor file"
    )


def check_whole(name: str, value: object, high: int = MAX_SIDE) -> int:
    """Return `value` where it is a whole number from 1 to `high`.

    Raises:
        ModelError: it is not; names it and the bound.
    """
    if type(value) is not int or not 1 <= value <= high:
        raise bad_value(name, value, f"a whole number from 1 to {high}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return `value` where it is true or false.

    Raises:
        ModelError: it is neither.
    """
    if type(value) is not bool:
        raise bad_value(name, value, "true or false")
    return value


def check_keys(cls: type, data: object, where: str) -> dict[str, Any]:
    """Return `data` where it is an object with the keys of the dataclass `cls`, those with defaults left out or not.

    Args:
        cls: the dataclass that is to be built from the keys and values.
        data: what was read from JSON.
        where: what to call the object in errors.

    Raises:
        ModelError: not an object, or unknown or missing keys (named).
    """
    if not isinstance(data, dict):
        raise ModelError(f"{where} holds a {type(data).__name__}, not an object; check the checkpoint")
    fields = dataclasses.fields(cls)
    unknown = sorted(str(key) for key in data.keys() - {field.name for field in fields})
    missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in data]
    for what, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise ModelError(f"{where} has {what} keys ({shown(', '.join(names))}); check the checkpoint")
    return data
