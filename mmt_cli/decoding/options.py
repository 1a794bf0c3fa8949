"""How a text is to be written: the options of generation, checked when they are built.

Names and meaning are those of transformers' `GenerationConfig`, but for `num_captions` (there `num_return_sequences`),
`end_token_ids` (there `eos_token_id`), `forced_end_token_ids` (there `forced_eos_token_id`) and `stop_loops`, which is
not there. This module imports no torch: the command line reads its defaults from here.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from mmt_cli.errors import UsageError, shown

_TOKEN_LISTS = ("end_token_ids", "forced_end_token_ids", "suppress_tokens", "begin_suppress_tokens")
_LARGEST_TOKEN = 2**31 - 1
_LONGEST = 1_000_000  # new tokens; together with the next bound it keeps length ** length_penalty finite
_STEEPEST_LENGTH_PENALTY = 20.0
_MOST_ROWS = 1000  # beams or captions of one item
_SMALLEST_FACTOR, _LARGEST_FACTOR = 1e-5, 1e5  # logits divided or multiplied by more extreme ones may overflow float32


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of one generation, the same for every item of a batch.

    One beam and none of temperature, top_k and top_p is greedy search; any of these three given turns sampling on;
    more than one beam is beam search. The two do not combine.

    `max_length` and `min_length` count the prompt's tokens too, so they hold for one length of prompt: `for_prompt`
    turns them into new tokens, and decoding takes only options that have gone through it.

    Attributes:
        max_new_tokens: Most tokens generated after the prompt; 0 generates nothing.
        min_new_tokens: No end token before this many tokens.
        max_length: Most tokens of prompt and text together; where it is given, `max_new_tokens` is not looked at.
        min_length: No end token before prompt and text have this many tokens, or as many as there is room for; not
            looked at where `min_new_tokens` is above 0.
        num_beams: Beams kept for each item.
        length_penalty: Beam search divides a sum of log-probabilities by length ** length_penalty (tokens generated).
        early_stopping: When beam search ends an item that has num_beams finished texts: True at once, False when the
            best open beam, scored at its present length, is no better than the worst of them, "never" when it could
            not become better at any length.
        temperature: Divides the logits.
        top_k: Only the k most likely tokens may be drawn; 0 allows all of them.
        top_p: Only the fewest most likely tokens that together reach this probability may be drawn.
        repetition_penalty: Above 1 makes tokens of the prompt and of the text so far less likely, below 1 more likely.
        no_repeat_ngram_size: No run of this many tokens twice in prompt and text; 0 allows it.
        num_captions: Texts for each item: the best of its beams, or as many draws.
        end_token_ids: Tokens that end a text.
        forced_bos_token_id: The token generated first where the prompt is a single token (BART, Florence-2).
        forced_end_token_ids: The last token where the text comes to its full length; greedy search takes the lowest.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that are not generated first, or second after a forced first one.
        bad_words_ids: Runs of tokens that are never completed, the prompt's tokens counted; a single end token is
            passed over.
        stop_loops: A text that repeats itself without end (see `loops`) ends there, though not before
            `min_new_tokens`.

    Raises:
        UsageError: A value out of its bounds or of the wrong type, or values that exclude each other.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    max_length: int | None = None
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_captions: int = 1
    end_token_ids: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_end_token_ids: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_loops: bool = False

    def __post_init__(self) -> None:
        self._check_values()
        self._check_combinations()

    @property
    def sampling(self) -> bool:
        """Whether tokens are drawn at random."""
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))

    def for_prompt(self, prompt_length: int) -> Self:
        """The options with `max_length` and `min_length` turned into new tokens after this many prompt tokens.

        Raises:
            UsageError: The prompt fills `max_length`, or leaves less room than `min_new_tokens`.
        """
        maximum = self.max_new_tokens
        if self.max_length is not None:
            maximum = self.max_length - prompt_length
            if maximum < max(self.min_new_tokens, 1):
                raise UsageError(
                    f"the prompt leaves too little room ({prompt_length} tokens, max_length {self.max_length}, "
                    f"min_new_tokens {self.min_new_tokens}); give max_new_tokens"
                )
        minimum = self.min_new_tokens or min(max(self.min_length - prompt_length, 0), maximum)
        return dataclasses.replace(self, max_length=None, min_length=0, max_new_tokens=maximum, min_new_tokens=minimum)

    def to_json(self) -> dict[str, Any]:
        """All options as values that JSON can hold."""
        lists: dict[str, Any] = {name: list(getattr(self, name)) for name in _TOKEN_LISTS}
        lists["bad_words_ids"] = [list(word) for word in self.bad_words_ids]
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The options written by `to_json`; what is absent keeps its default.

        Raises:
            UsageError: A key that is no option, or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise UsageError(f"unknown generation option {shown(unknown[0])}; use one of {', '.join(known)}")
        given = dict(values)
        given |= {name: tuple(given[name]) for name in _TOKEN_LISTS if isinstance(given.get(name), list)}
        if isinstance(words := given.get("bad_words_ids"), list):
            given["bad_words_ids"] = tuple(tuple(word) if isinstance(word, list) else word for word in words)
        return cls(**given)

    def _check_values(self) -> None:
        self._check_lengths()
        self._check_tokens()
        _require_integer("num_beams", self.num_beams, at_least=1, at_most=_MOST_ROWS)
        _require_integer("num_captions", self.num_captions, at_least=1, at_most=_MOST_ROWS)
        _require_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, at_least=0)
        steepest = _STEEPEST_LENGTH_PENALTY
        _require_number("length_penalty", self.length_penalty, at_least=-steepest, at_most=steepest)
        smallest, largest = _SMALLEST_FACTOR, _LARGEST_FACTOR
        _require_number("repetition_penalty", self.repetition_penalty, at_least=smallest, at_most=largest)
        if self.temperature is not None:
            _require_number("temperature", self.temperature, at_least=smallest, at_most=largest)
        if self.top_k is not None:
            _require_integer("top_k", self.top_k, at_least=0)
        if self.top_p is not None:
            _require_number("top_p", self.top_p, above=0.0, at_most=1.0)
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise UsageError(f'early_stopping is {shown(self.early_stopping)}; use true, false or "never"')
        if not isinstance(self.stop_loops, bool):
            raise UsageError(f"stop_loops is {shown(self.stop_loops)}; use true or false")

    def _check_lengths(self) -> None:
        _require_integer("max_new_tokens", self.max_new_tokens, at_least=0, at_most=_LONGEST)
        _require_integer("min_new_tokens", self.min_new_tokens, at_least=0, at_most=_LONGEST)
        _require_integer("min_length", self.min_length, at_least=0, at_most=_LONGEST)
        if self.max_length is not None:
            _require_integer("max_length", self.max_length, at_least=1, at_most=_LONGEST)

    def _check_tokens(self) -> None:
        for name in _TOKEN_LISTS:
            _require_tokens(name, getattr(self, name))
        if self.forced_bos_token_id is not None:
            _require_tokens("forced_bos_token_id", (self.forced_bos_token_id,))
        words = self.bad_words_ids
        if not isinstance(words, tuple) or () in words:
            raise UsageError(f"bad_words_ids is {shown(words)}; use a list of lists of token ids")
        for word in words:
            _require_tokens("bad_words_ids", word)

    def _check_combinations(self) -> None:
        if self.max_length is None and self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}; "
                "lower the first or raise the second"
            )
        first = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        for forced in (first, self.forced_end_token_ids):
            if forced and set(forced) <= set(self.suppress_tokens):
                raise UsageError(
                    f"the forced tokens {shown(list(forced))} are all among suppress_tokens "
                    f"{shown(list(self.suppress_tokens))}; take them out of either"
                )
        if self.num_beams > 1 and self.sampling:
            raise UsageError(
                f"num_beams {self.num_beams} does not combine with sampling (temperature {self.temperature}, "
                f"top_k {self.top_k}, top_p {self.top_p}); use one beam, or leave these three out"
            )
        if self.num_captions > self.num_beams and not self.sampling:
            raise UsageError(
                f"num_captions {self.num_captions} is more than num_beams {self.num_beams}; "
                "use at least as many beams, or sample with temperature, top_k or top_p"
            )


def _require_tokens(name: str, tokens: object) -> None:
    if not isinstance(tokens, tuple):
        raise UsageError(f"{name} is {shown(tokens)}; use a list of token ids")
    for token in tokens:
        _require_integer(name, token, at_least=0, at_most=_LARGEST_TOKEN)


def _require_integer(name: str, value: object, *, at_least: int, at_most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {shown(value)}; use a whole number")
    if value < at_least:
        raise UsageError(f"{name} is {shown(value)}; use at least {at_least}")
    if at_most is not None and value > at_most:
        raise UsageError(f"{name} is {shown(value)}; use at most {at_most}")


def _require_number(
    name: str, value: object, *, at_least: float = -math.inf, above: float = -math.inf, at_most: float
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {shown(value)}; use a number")
    if not value >= at_least:  # written so that NaN fails
        raise UsageError(f"{name} is {shown(value)}; use at least {at_least:g}")
    if value <= above:
        raise UsageError(f"{name} is {shown(value)}; use more than {above:g}")
    if value > at_most:
        raise UsageError(f"{name} is {shown(value)}; use at most {at_most:g}")
