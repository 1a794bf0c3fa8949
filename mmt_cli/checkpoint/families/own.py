"""Our own format: the whole model config in `config.json`, tensors under the model's own names."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Family
from mmt_cli.checkpoint.keymap import Rule
from mmt_cli.errors import ModelError, shown
from mmt_cli.model.config import ModelConfig

if TYPE_CHECKING:
    from mmt_cli.inputs.prompt import Continuation
    from mmt_cli.inputs.tokenizer import Tokenizer

FORMAT_VERSION = 1
_FORMAT_KEYS = ("format", "format_version")


def _config(data: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"unknown format version ({shown(version)}, known {FORMAT_VERSION}); update mmt")
    return ModelConfig.from_json({key: value for key, value in data.items() if key not in _FORMAT_KEYS})


def prompting(config: Mapping[str, Any], words: "Tokenizer") -> "Continuation":
    """Return how our own models are asked, from their `config.json`."""
    return own_prompting(_config(config, ()), words)


def own_prompting(config: ModelConfig, words: "Tokenizer") -> "Continuation":
    """Return how our own models are asked: the begin token, the image where it is spliced in, the first words."""
    from mmt_cli.inputs.prompt import Continuation

    return Continuation(start=(words.bos_id,), placeholder_id=config.placeholder_id, strips=True)


OWN = Family(
    name="mmt",
    config_from_hf=_config,
    rules=lambda config: (Rule("{*}", "{*}"),),
    prompting=prompting,
    native=True,
)
