"""How a prompt and an image become the token ids that a model starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmt_cli.errors import UsageError, shown
from mmt_cli.inputs.user_text import UserText

if TYPE_CHECKING:
    from mmt_cli.inputs.tokenizer import Tokenizer

QUESTION = "Describe the image."  # what models that answer are asked where the user asks nothing


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an image stands in a prompt.

    Attributes:
        tokens: image tokens of each of its tiles.
        rows: rows of tiles; 0 where the image is not split.
        columns: tiles in a row.
        tiles: all tiles, the whole image that may come last among them.
    """

    tokens: int
    rows: int = 0
    columns: int = 0
    tiles: int = 1


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model reads before it writes.

    Attributes:
        ids: what the decoder starts from, image placeholders among them.
        encoder_ids: what a prompt encoder reads; None for models without one.
        shown: how many of the last ids are the caption's first words.
    """

    ids: tuple[int, ...]
    encoder_ids: tuple[int, ...] | None = None
    shown: int = 0


class Prompting(Protocol):
    """How a family is asked."""

    def __call__(self, words: "Tokenizer", text: str | None, image: Layout) -> Prompt:
        """Return the prompt for a user's text about an image.

        Raises:
            ModelError: the tokenizer lacks a token that the family needs.
        """


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Captioners go on from the caption's first words.

    Attributes:
        start: ids before them.
        placeholder_id: the token that stands behind these for each image token; None where the image stands elsewhere.
        strips: whether outer white space is taken off the words.
    """

    start: tuple[int, ...]
    placeholder_id: int | None = None
    strips: bool = False

    def __call__(self, words: "Tokenizer", text: str | None, image: Layout) -> Prompt:
        """Return start, image and first words."""
        given = text or ""
        first = words.encode(given.strip() if self.strips else given)
        placeholders = [] if self.placeholder_id is None else [self.placeholder_id] * (image.tokens * image.tiles)
        return Prompt(ids=(*self.start, *placeholders, *first), shown=len(first))


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt encoder reads the question; the answer starts from ids that every answer starts from.

    Attributes:
        start: those ids.
        before: ids before the question.
        behind: ids behind it.
    """

    start: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    def __call__(self, words: "Tokenizer", text: str | None, image: Layout) -> Prompt:
        """Return the start, and the question for the encoder."""
        question = words.encode(QUESTION if text is None else text)
        return Prompt(ids=self.start, encoder_ids=(*self.before, *question, *self.behind))


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Chat models are shown a turn of the user's, image and question, and go on with the answer.

    Attributes:
        start: ids before all text.
        picture: returns the text that stands for an image.
        turn: the text before the image, between image and question, and behind the question.
        system_turn: the text before and behind a system prompt; None where the family has no place for one.
        system: what the model is told first; None says nothing.
    """

    start: tuple[int, ...] = ()
    picture: Callable[[Layout], str]
    turn: tuple[str, str, str]
    system_turn: tuple[str, str] | None = None
    system: str | None = None

    def __call__(self, words: "Tokenizer", text: str | None, image: Layout) -> Prompt:
        """Return start, system prompt, image and question; only the answer is shown.

        Raises:
            UsageError: a system prompt for a family that has no place for one.
        """
        before, between, after = self.turn
        question = UserText(QUESTION if text is None else text)
        parts = [*self._told(), before, self.picture(image), between, question, after]
        return Prompt(ids=(*self.start, *words.encode_template(parts)))

    def _told(self) -> list[str | UserText]:
        if self.system is None:
            return []
        if self.system_turn is None:
            raise UsageError(
                f"this model takes no system prompt (given {shown(self.system)}, none expected); leave it out"
            )
        before, after = self.system_turn
        return [before, UserText(self.system), after]
