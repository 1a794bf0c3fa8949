"""What the chat families share: configs within a config, layers of the tower that are left out, image tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmt_cli.checkpoint.families.base import Given, special_id
from mmt_cli.checkpoint.keymap import Rule, Rules
from mmt_cli.errors import ModelError

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

Defaults = Mapping[str, Any]


def subconfig(
    config: Mapping[str, Any], name: str, kinds: Mapping[str, Defaults], absent: Defaults | None = None
) -> tuple[str, Given]:
    """Return the `model_type` of a config within `config.json`, and its values.

    Args:
        config: the content of `config.json`.
        name: of the inner config, such as `text_config`.
        kinds: the defaults of each `model_type` that the family can have; the first is taken where none is named.
        absent: what the family's class puts over these defaults where the inner config is left out altogether.

    Raises:
        ModelError: the inner config is no object, or one of another `model_type`.
    """
    given = Given(config, {})
    named = given.part(name, {"model_type": next(iter(kinds))})
    named.only("model_type", *kinds)
    kind: str = named.get("model_type")
    over = (absent or {}) if given.get(name) is None else {}
    return kind, given.part(name, {**kinds[kind], **over, "model_type": kind})


def feature_layers(given: Given, layers: int) -> int:
    """Return after how many of the tower's layers its tokens are taken: `vision_feature_layer` as a count.

    transformers counts the embeddings as hidden state 0, and negative numbers from the last layer.

    Args:
        given: the values of `config.json`.
        layers: of the tower.

    Raises:
        ModelError: there is no such layer, or there are several.
    """
    index = given.whole("vision_feature_layer")
    count = index if index >= 0 else layers + 1 + index
    if not 0 <= count <= layers:
        raise ModelError(f"the tower has no such layer (vision_feature_layer {index}, {layers} layers); use another")
    return count


def first_layers(rules: Rules, count: int) -> Rules:
    """Return the rules for the first `count` layers alone; those behind them, which nothing reads, are dropped."""
    # One alternative would be a number of any size.
    kept = "{" + "|".join(map(str, range(count))) + "}" if count > 1 else "0"
    cut: list[Rule] = []
    for rule in rules:
        if "{i}" not in rule.theirs or rule.ours is None:
            cut.append(rule)
            continue
        if count:
            cut.append(Rule(rule.theirs.replace("{i}", kept), rule.ours.replace("{i}", kept), rule.transposed))
        cut.append(Rule(rule.theirs, None))
    return cut


def image_token(words: "Tokenizer", placeholder_id: int, name: str, usual: str) -> str:
    """Return the text of the token that stands where the image is spliced in.

    Args:
        words: the tokenizer.
        placeholder_id: its id, according to `config.json`.
        name: of the token, as in `tokenizer_config.json`.
        usual: its text, where the tokenizer does not say which it is.

    Raises:
        ModelError: the tokenizer lacks it, or has it elsewhere.
    """
    index = special_id(words, name, usual)
    if index != placeholder_id:
        both = f"image token {index} and {placeholder_id}"
        raise ModelError(f"tokenizer and config do not fit ({both}); use the tokenizer of this checkpoint")
    return words.names.get(name, usual)
