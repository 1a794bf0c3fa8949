"""Captions word by word, while the model still writes."""

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from mmt_cli.inputs.tokenizer import Tokenizer

Step = TypeVar("Step")
Result = TypeVar("Result")

_BYTE = re.compile("<0x..>")


class GrowingText:
    """The text of tokens that come one after another, in pieces that no later token can change.

    The last word is held back: a token may still continue it, complete its last character or, where the tokenizer
    takes spaces before punctuation out again, move it up to the word before.
    """

    def __init__(self, words: Tokenizer) -> None:
        self._words = words
        special = words.backend.get_added_tokens_decoder()
        self._special = {index for index, token in special.items() if token.special}
        self._ids: list[int] = []
        self._given = 0  # characters handed out

    def add(self, tokens: Iterable[int]) -> str:
        """Return what these tokens make certain, which may be nothing."""
        self._ids += tokens
        text = self._words.decode(self._ids[: self._settled()])
        end = text.rfind(" ")
        if text[end:] == " '":  # "do n '" may become "don't"
            end = text.rfind(" ", 0, end)
        piece = text[self._given : max(end, 0)]
        self._given += len(piece)
        return piece

    def rest(self) -> str:
        """Return what is left when no more tokens come."""
        return self._words.decode(self._ids)[self._given :]

    def _settled(self) -> int:
        """Return how many tokens are certain: bytes at the end spell other characters, or none, with more of them."""
        end = len(self._ids)
        while end and self._is_open(self._ids[end - 1]):
            end -= 1
        return end

    def _is_open(self, index: int) -> bool:
        content = self._words.backend.id_to_token(index) if 0 <= index < self._words.vocab_size else None
        return content is None or index in self._special or _BYTE.fullmatch(content) is not None


def stepwise(
    steps: Generator[Step, None, Result], mode: Callable[[], AbstractContextManager[object]]
) -> Generator[Step, None, Result]:
    """Run each step of a generator in a mode that does not hold while the caller has its turn."""
    while True:
        with mode():
            try:
                step = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
        yield step
