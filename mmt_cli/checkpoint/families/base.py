"""What a family of checkpoints says of itself, and the reading of configs that families share."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.keymap import Layouts, Rules
from mmt_cli.errors import ModelError, shown
from mmt_cli.model.block_config import Activation
from mmt_cli.model.config import ModelConfig

if TYPE_CHECKING:  # all that a look at headers leaves out
    from mmt_cli.decoding.options import GenerationOptions
    from mmt_cli.inputs.prompt import Prompting
    from mmt_cli.inputs.tokenizer import Tokenizer

ANY = "*"  # in a module's FAMILIES: whatever the architecture is called
# (content of config.json, names of the tensors that the files hold) → the model
ConfigReader = Callable[[Mapping[str, Any], Collection[str]], ModelConfig]


def _as_they_are(options: "GenerationOptions", config: Mapping[str, Any]) -> "GenerationOptions":
    return options


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's configs, tensor names and prompts become ours.

    Attributes:
        name: what `mmt inspect` calls the format.
        config_from_hf: reads the model from `config.json` and the names of the tensors that are there.
        rules: the table of names, for a model of the family.
        layouts: how names begin in other layouts than that of the rules.
        prompting: returns how prompts are put, from `config.json` (with the content of `generation_config.json` under
            that name) and the tokenizer.
        image_processor: the type of its image processor, where the folder does not say.
        generation: adjusts the defaults of decoding, given the same.
        answers: whether the prompt is a question, and the text an answer to it instead of its continuation.
        native: whether the files beside the weights are ours, not Hugging Face's.
    """

    name: str
    config_from_hf: ConfigReader
    rules: Callable[[ModelConfig], Rules]
    layouts: Layouts = ()
    prompting: "Callable[[Mapping[str, Any], Tokenizer], Prompting]"
    image_processor: str = "CLIPImageProcessor"
    generation: "Callable[[GenerationOptions, Mapping[str, Any]], GenerationOptions]" = _as_they_are
    answers: bool = False
    native: bool = False


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Given:
    """The values of a config, or of a part of it, over the defaults of its class: hub files are sparse."""

    def __init__(self, data: Mapping[str, Any], defaults: Mapping[str, Any], path: str = "") -> None:
        self._data = data
        self._defaults = defaults
        self._path = path

    def part(self, name: str, defaults: Mapping[str, Any]) -> "Given":
        """Return a config within this one; one that is absent has nothing but defaults.

        Raises:
            ModelError: it is no object.
        """
        value = self._data.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._bad(name, value, "an object")
        return Given(value or {}, defaults, f"{self._path}{name}.")

    def get(self, name: str) -> Any:
        """Return a value as it stands there, or its default."""
        value = self._data.get(name)
        return self._defaults.get(name) if value is None else value

    def whole(self, name: str) -> int:
        """Return a whole number.

        Raises:
            ModelError: it is something else.
        """
        value = self.get(name)
        if type(value) is not int:
            raise self._bad(name, value, "a whole number")
        return value

    def real(self, name: str) -> float:
        """Return a number.

        Raises:
            ModelError: it is something else.
        """
        value = self.get(name)
        if type(value) not in (int, float):
            raise self._bad(name, value, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self._bad(name, value, "a number") from None

    def flag(self, name: str) -> bool:
        """Return true or false.

        Raises:
            ModelError: it is something else.
        """
        value = self.get(name)
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def side(self, name: str) -> int:
        """Return a size in pixels that may be written as a pair of equal ones.

        Raises:
            ModelError: it is something else.
        """
        value = self.get(name)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int:
            raise self._bad(name, value, "a whole number, or two equal ones")
        return value

    def activation(self, name: str) -> Activation:
        """Return an activation in our spelling.

        Raises:
            ModelError: it is none that we have.
        """
        value = self.get(name)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self._bad(name, value, " | ".join(_ACTIVATIONS))
        return _ACTIVATIONS[value]

    def only(self, name: str, *allowed: object) -> None:
        """Raise ModelError for a value that asks for something we do not have."""
        value = self.get(name)
        if value not in allowed:
            raise self._bad(name, value, " or ".join(map(repr, allowed)))

    def _bad(self, name: str, value: object, expected: str) -> ModelError:
        found = f"{self._path}{name} {shown(value)}"
        return ModelError(f"config.json holds what cannot be read ({found}, expected {expected}); use another")


def special_id(words: "Tokenizer", name: str, usual: str) -> int:
    """Return the id of a special token.

    Args:
        words: the tokenizer.
        name: of the token, as in `tokenizer_config.json`.
        usual: its text, where the tokenizer does not say which it is.

    Raises:
        ModelError: there is none.
    """
    index = words.named_id(name)
    index = words.token_id(usual) if index is None else index
    if index is None:
        raise ModelError(f"the tokenizer lacks a special token ({name} {usual}); use the tokenizer of this checkpoint")
    return index


def start_id(config: Mapping[str, Any], decoder: str) -> int:
    """Return the token that a decoder's text starts from, looked for where transformers does.

    Args:
        config: content of `config.json`, with that of `generation_config.json` in it.
        decoder: the part of it that describes the decoder.

    Raises:
        ModelError: it is nowhere said.
    """
    given = Given(config, {})
    parts = (given.part("generation_config", {}), given, given.part(decoder, {}))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for part in parts:
            if part.get(name) is not None:
                return part.whole(name)
    where = "generation_config.json and config.json"
    raise ModelError(f"no token to start from (decoder_start_token_id, looked for in {where}); add it there")
