"""Checkpoint families: whose folders can be read, by the `model_type` in their `config.json`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmt_cli.checkpoint.families import seed
from mmt_cli.checkpoint.keymap import Rules
from mmt_cli.errors import ModelError, shown
from mmt_cli.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's config and tensor names become ours."""

    name: str
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Rules


FORMAT_VERSION = 1
_FORMAT_KEYS = ("format", "format_version")


def _own_config(data: Mapping[str, Any]) -> ModelConfig:
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"unknown format version ({shown(version)}, known {FORMAT_VERSION}); update mmt")
    return ModelConfig.from_json({key: value for key, value in data.items() if key not in _FORMAT_KEYS})


OWN = Family(name="mmt", config_from_hf=_own_config, rules=((r".*", r"\g<0>"),))
FAMILIES = {"seed": Family(name="seed", config_from_hf=seed.config_from_hf, rules=seed.RULES)}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that a `config.json` belongs to.

    Raises:
        ModelError: neither our format nor a known `model_type`.
    """
    if config.get("format") == OWN.name:
        return OWN
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"unknown model_type ({shown(model_type)}, known: {known}); use one of these families")
    return FAMILIES[model_type]
