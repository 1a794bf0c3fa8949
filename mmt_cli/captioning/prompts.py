"""How a captioner's family is asked, and whether a prompt fits the model."""

import dataclasses
from collections.abc import Callable, Sequence

from mmt_cli.checkpoint.families.own import own_prompting
from mmt_cli.checkpoint.reference import Source
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.inputs.prompt import Chat, Layout, Prompt, Prompting
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig

Prompts = str | Sequence[str | None] | None  # one for all images, or one each


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


def check_prompt(prompt: Prompt, config: ModelConfig) -> None:
    """Check that a model can read a prompt.

    Raises:
        UsageError: it leaves no room for a word in the model's context.
        ModelError: a token of it lies beyond the model's vocabulary.
    """
    read = [(prompt.ids, config.text)]
    if prompt.encoder_ids is not None and config.prompt_encoder is not None:
        read.append((prompt.encoder_ids, config.prompt_encoder.text))
    for ids, text in read:
        if len(ids) > text.max_length:
            lengths = f"{len(ids)} tokens, the model's context is {text.max_length}"
            raise UsageError(f"the prompt is too long ({lengths}); shorten it")
        # Where the image goes is no word, and may lie outside the vocabulary.
        beyond = next((i for i in ids if not 0 <= i < text.vocab_size and i != config.placeholder_id), None)
        if beyond is not None:
            both = f"token {beyond} of the prompt, {text.vocab_size} in the model's vocabulary"
            raise ModelError(f"tokenizer and model do not fit ({both}); use the tokenizer of this checkpoint")


def encode_each(
    prompts: Prompts, layouts: Sequence[Layout], encode: Callable[[str | None, Layout], Prompt]
) -> list[Prompt]:
    """Return what a model reads for each of these images; what is equal is encoded once.

    Raises:
        UsageError: there are not as many prompts as images.
    """
    texts = [prompts] * len(layouts) if prompts is None or isinstance(prompts, str) else list(prompts)
    if len(texts) != len(layouts):
        raise UsageError(f"prompts and images do not fit ({len(texts)} prompts, {len(layouts)} images); give one each")
    asked = list(zip(texts, layouts, strict=True))
    encoded = {item: encode(*item) for item in dict.fromkeys(asked)}
    return [encoded[item] for item in asked]
