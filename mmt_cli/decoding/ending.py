"""Why a text ends. Imports no torch."""

from collections.abc import Sequence
from typing import Literal

from mmt_cli.decoding.loops import loops
from mmt_cli.decoding.options import GenerationOptions

FinishReason = Literal["stop", "length", "loop"]


def ending(tokens: Sequence[int], options: GenerationOptions) -> FinishReason | None:
    """Return why a text ends with its last token; None where it goes on.

    Args:
        tokens: generated so far.
        options: gone through `for_prompt`.
    """
    if tokens and tokens[-1] in options.end_token_ids:
        return "stop"
    if options.stop_loops and len(tokens) >= options.min_new_tokens and loops(tokens):
        return "loop"
    return "length" if len(tokens) >= options.max_new_tokens else None
