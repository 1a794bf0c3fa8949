"""Logit filters: small callables that change the scores of the next token before one is chosen.

Shapes: R rows (texts being written), V vocabulary, T tokens so far (prompt, then generated, padded on the left),
W windows or words of N tokens. Scores are float32: logits in greedy search and sampling, log-probabilities in beam
search; a token that is ruled out has -inf. A filter returns a new tensor and leaves its argument as it was.

Each does what the logits processor of the same name does in transformers 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError

_PADDING = torch.iinfo(torch.int64).max  # above every vocabulary, so it equals no token and is cut off with `clamp`


class History:
    """The token ids of each row so far: its prompt, then what was generated, which is equally long in every row.

    Attributes:
        ids_RT: int64; a row with a shorter prompt is padded on the left with an id that is no token.
        generated: Tokens generated so far.
    """

    def __init__(self, prompt_ids: Sequence[Sequence[int]], device: torch.device) -> None:
        longest = max(map(len, prompt_ids))
        padded = [[_PADDING] * (longest - len(ids)) + list(ids) for ids in prompt_ids]
        self.ids_RT = torch.tensor(padded, dtype=torch.int64, device=device)
        self.generated = 0

    def prompt_lengths(self) -> Tensor:
        """length_R (int64), the tokens of each row's prompt."""
        return (self.ids_RT != _PADDING).sum(dim=1) - self.generated

    def keep(self, row_R: Tensor) -> None:
        """Take these rows, in this order, from now on."""
        self.ids_RT = self.ids_RT[row_R]

    def append(self, token_R: Tensor) -> None:
        """Add one generated token to each row."""
        self.ids_RT = torch.cat((self.ids_RT, token_R[:, None]), dim=1)
        self.generated += 1


class Filter(Protocol):
    """Changes scores_RV (float32), given what the rows hold so far."""

    def __call__(self, scores_RV: Tensor, history: History, /) -> Tensor:
        """Return the changed scores_RV."""


@dataclass(frozen=True)
class RepetitionPenalty:
    """Make tokens that a row already holds less likely (Keskar et al. 2019, arXiv:1909.05858)."""

    penalty: float

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Divide positive scores of these tokens by the penalty and multiply negative ones."""
        changed_RV = torch.where(scores_RV < 0, scores_RV * self.penalty, scores_RV / self.penalty)
        return torch.where(_marked(history.ids_RT, scores_RV), changed_RV, scores_RV)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Rule out tokens that would complete a run of `size` tokens that a row already holds."""

    size: int

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule out the last token of each window that begins with the row's last size - 1 tokens."""
        ids_RT = history.ids_RT
        length = ids_RT.shape[1]
        if length < self.size:
            return scores_RV
        window_RWN = ids_RT.unfold(1, self.size, 1)
        begins_alike_RW = (window_RWN[..., :-1] == ids_RT[:, None, length + 1 - self.size :]).all(dim=-1)
        banned_RW = window_RWN[..., -1].masked_fill(~begins_alike_RW, _PADDING)
        return scores_RV.masked_fill(_marked(banned_RW, scores_RV), -math.inf)


class BadWords:
    """Rule out tokens that would complete one of these runs of tokens; a run of one token is always ruled out."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        sizes = sorted({len(word) for word in words})
        self._words_of_a_size = [torch.tensor([word for word in words if len(word) == size]) for size in sizes]

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule out the last token of each word whose other tokens end the row; ids beyond the vocabulary are none."""
        ids_RT = history.ids_RT
        for word_WN in self._words_of_a_size:
            before = word_WN.shape[1] - 1
            if before > ids_RT.shape[1]:
                continue
            word_WN = word_WN.to(ids_RT.device)
            end_R1N = ids_RT[:, None, ids_RT.shape[1] - before :]
            begun_RW = (end_R1N == word_WN[:, :-1]).all(dim=-1)
            banned_RW = word_WN[:, -1].expand_as(begun_RW).masked_fill(~begun_RW, _PADDING)
            scores_RV = scores_RV.masked_fill(_marked(banned_RW, scores_RV), -math.inf)
        return scores_RV


@dataclass(frozen=True)
class MinNewTokens:
    """Rule out the end tokens until `count` tokens are generated."""

    count: int
    end_token_ids: tuple[int, ...]

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule out the end tokens while the text is shorter; ids beyond the vocabulary are passed over."""
        if history.generated >= self.count:
            return scores_RV
        return _ruled_out(self.end_token_ids, scores_RV)


@dataclass(frozen=True)
class ForcedFirst:
    """Rule out all tokens but this one where the prompt is a single token."""

    token_id: int

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Give the token the score 0 in the rows that hold one token."""
        if history.generated > 0:
            return scores_RV
        return torch.where(history.prompt_lengths()[:, None] == 1, _only((self.token_id,), scores_RV), scores_RV)


@dataclass(frozen=True)
class ForcedLast:
    """Rule out all tokens but these when `count` tokens are generated."""

    count: int
    token_ids: tuple[int, ...]

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Give the tokens the score 0 in the last step."""
        return _only(self.token_ids, scores_RV) if history.generated == self.count else scores_RV


@dataclass(frozen=True)
class SuppressTokens:
    """Rule out these tokens."""

    token_ids: tuple[int, ...]

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule them out; ids beyond the vocabulary are passed over."""
        return _ruled_out(self.token_ids, scores_RV)


@dataclass(frozen=True)
class SuppressFirst:
    """Rule out these tokens as the first that is freely chosen.

    Attributes:
        token_ids: The tokens.
        after_forced: A prompt of one token is followed by a forced token, which is not freely chosen.
    """

    token_ids: tuple[int, ...]
    after_forced: bool

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule them out in the first step, or in the second after a forced token."""
        if history.generated > 1:
            return scores_RV
        first_R1 = ((history.prompt_lengths() <= 1) & self.after_forced)[:, None]
        return torch.where(first_R1 == history.generated, _ruled_out(self.token_ids, scores_RV), scores_RV)


@dataclass(frozen=True)
class Temperature:
    """Sharpen (below 1) or flatten (above 1) the distribution."""

    temperature: float

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Divide the scores by the temperature."""
        return scores_RV / self.temperature


@dataclass(frozen=True)
class TopK:
    """Keep the k best tokens (Fan et al. 2018, arXiv:1805.04833), and those that tie with the last of them."""

    k: int

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule out what scores less than the k-th best token."""
        kth_best_R1 = scores_RV.topk(min(self.k, scores_RV.shape[1])).values[:, -1:]
        return scores_RV.masked_fill(scores_RV < kth_best_R1, -math.inf)


@dataclass(frozen=True)
class TopP:
    """Keep the fewest most likely tokens that together reach probability p (Holtzman et al. 2020, arXiv:1904.09751)."""

    p: float

    def __call__(self, scores_RV: Tensor, history: History) -> Tensor:
        """Rule out the unlikely tokens whose probabilities add up to no more than 1 - p; the best one stays."""
        ascending_RV, token_RV = scores_RV.sort(dim=-1)
        tail_RV = ascending_RV.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.p
        tail_RV[:, -1] = False
        return scores_RV.masked_fill(tail_RV.scatter(1, token_RV, tail_RV), -math.inf)


def build_filters(options: GenerationOptions) -> list[Filter]:
    """The filters that the options ask for, in the order in which transformers applies them."""
    filters: list[Filter] = []
    if options.repetition_penalty != 1.0:
        filters.append(RepetitionPenalty(options.repetition_penalty))
    if options.no_repeat_ngram_size > 0:
        filters.append(NoRepeatNgram(options.no_repeat_ngram_size))
    if words := [word for word in options.bad_words_ids if len(word) > 1 or word[0] not in options.end_token_ids]:
        filters.append(BadWords(words))
    if options.min_new_tokens > 0 and options.end_token_ids:
        filters.append(MinNewTokens(options.min_new_tokens, options.end_token_ids))
    if options.forced_bos_token_id is not None:
        filters.append(ForcedFirst(options.forced_bos_token_id))
    if options.forced_end_token_ids:
        filters.append(ForcedLast(options.max_new_tokens - 1, options.forced_end_token_ids))
    if options.suppress_tokens:
        filters.append(SuppressTokens(options.suppress_tokens))
    if options.begin_suppress_tokens:
        forced = options.forced_bos_token_id is not None
        filters.append(SuppressFirst(options.begin_suppress_tokens, after_forced=forced))
    if options.temperature is not None and options.temperature != 1.0:
        filters.append(Temperature(options.temperature))
    if options.top_k:
        filters.append(TopK(options.top_k))
    if options.top_p is not None and options.top_p < 1.0:
        filters.append(TopP(options.top_p))
    return filters


def apply_filters(filters: Sequence[Filter], scores_RV: Tensor, history: History) -> Tensor:
    """Run scores_RV through the filters, one after the other."""
    for logit_filter in filters:
        scores_RV = logit_filter(scores_RV, history)
    return scores_RV


def _ruled_out(token_ids: Sequence[int], scores_RV: Tensor) -> Tensor:
    inside = [token for token in token_ids if token < scores_RV.shape[1]]
    return scores_RV.index_fill(1, torch.tensor(inside, dtype=torch.int64, device=scores_RV.device), -math.inf)


def _only(token_ids: Sequence[int], scores_RV: Tensor) -> Tensor:
    """Scores that allow these tokens alone.

    Raises:
        ModelError: One of them is beyond the vocabulary.
    """
    vocabulary = scores_RV.shape[1]
    if (token := max(token_ids)) >= vocabulary:
        raise ModelError(
            f"a forced token is not in the vocabulary ({token}, {vocabulary} tokens); mend the generation config"
        )
    place = torch.tensor(token_ids, dtype=torch.int64, device=scores_RV.device)
    return torch.full_like(scores_RV, -math.inf).index_fill(1, place, 0.0)


def _marked(ids_RX: Tensor, scores_RV: Tensor) -> Tensor:
    """Mask_RV (bool): True at each row's ids; ids beyond the vocabulary (image placeholders, padding) mark nothing."""
    rows, vocabulary = scores_RV.shape
    mask_RV = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=scores_RV.device)
    return mask_RV.scatter_(1, ids_RX.clamp(max=vocabulary), True)[:, :vocabulary]
