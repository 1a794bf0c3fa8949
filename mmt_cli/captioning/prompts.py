"""How a captioner's family is asked, and whether a prompt fits the model."""

import dataclasses

from mmt_cli.checkpoint.families.own import own_prompting
from mmt_cli.checkpoint.reference import Source
from mmt_cli.errors import UsageError, shown
from mmt_cli.inputs.prompt import Chat, Prompt, Prompting
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig


def find_prompting(source: Source | None, config: ModelConfig, words: Tokenizer, system: str | None) -> Prompting:
    """Return how a model is asked.

    Args:
        source: where it came from; None for a new one.
        config: of the model.
        words: its tokenizer.
        system: what a chat model is told before the question.

    Raises:
        UsageError: a system prompt for a model that does not chat.
    """
    found = own_prompting(config, words) if source is None else source.family.prompting(source.habits, words)
    if system is None:
        return found
    if not isinstance(found, Chat):
        raise UsageError(f"no chat model (--system {shown(system)}, the model goes on from words); leave it out")
    return dataclasses.replace(found, system=system)


def check_room(prompt: Prompt, config: ModelConfig) -> None:
    """Raise UsageError for a prompt that leaves no room for a word in the model's context."""
    lengths = [(len(prompt.ids), config.text.max_length)]
    if prompt.encoder_ids is not None and config.prompt_encoder is not None:
        lengths.append((len(prompt.encoder_ids), config.prompt_encoder.text.max_length))
    for length, limit in lengths:
        if length > limit:
            raise UsageError(f"the prompt is too long ({length} tokens, the model's context is {limit}); shorten it")
