"""Checkpoint families: whose folders can be read, by `model_type` and `architectures` in their `config.json`.

A new family is one module here, whose `FAMILIES` gives what it reads by architecture, and a line in `_MODULES`.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from mmt_cli.checkpoint.families.base import ANY, Family
from mmt_cli.checkpoint.families.own import OWN
from mmt_cli.errors import ModelError, shown

# model_type → module here. Only the module that is needed is imported.
_MODULES = {
    "seed": "seed",
    "git": "git",
    "blip": "blip",
    "vision-encoder-decoder": "vision_encoder_decoder",
    "florence2": "florence2",
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
    "llava": "llava",
    "paligemma": "paligemma",
    "internvl": "internvl",
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that a `config.json` belongs to.

    Raises:
        ModelError: neither our format nor a known `model_type`, or an architecture of it that writes no text.
    """
    if config.get("format") == OWN.name:
        return OWN
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODULES:
        known = ", ".join(_MODULES)
        raise ModelError(f"unknown model_type ({shown(model_type)}, known: {known}); use one of these families")
    families: dict[str, Family] = importlib.import_module(f"{__name__}.{_MODULES[model_type]}").FAMILIES
    return _of_architecture(config.get("architectures"), families)


def _of_architecture(architectures: Any, families: Mapping[str, Family]) -> Family:
    """Return the family of the first architecture named; for none the first that there is."""
    named = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if named is None or ANY in families:
        return next(iter(families.values()))
    if not isinstance(named, str) or named not in families:
        known = ", ".join(families)
        raise ModelError(f"unknown architecture ({shown(named)}, known: {known}); use a checkpoint of one of these")
    return families[named]
