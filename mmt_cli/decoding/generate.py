"""The loops that write text with a model: greedy search and sampling token by token, beam search as a whole.

They know no model, only a `Stepper`: something that gives logits for the next token and keeps a state for each row.

Shapes: B items, R rows (texts being written: items x captions or beams, less those that have finished), V vocabulary.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmt_cli.decoding.ending import FinishReason, ending
from mmt_cli.decoding.filters import History, apply_filters, build_filters
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.decoding.search import BeamItem, Chooser, Sampler, best_candidates, choose_best
from mmt_cli.errors import ModelError


class Stepper(Protocol):
    """A model with prompts already given, one a row, and the state (a cache) that goes with each row."""

    def start(self) -> Tensor:
        """Return logits_BV (float32) for the token after each item's prompt."""

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Append token_ids_R (int64), one a row, and return logits_RV (float32) for the token after it."""

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows (int64), in this order, from now on; a row may come more than once or not at all."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One generated text.

    Attributes:
        tokens: Ids after the prompt, up to and including the end token where there is one, never padding.
        logprob: Sum of their natural-log probabilities under the model, before any filter, penalty or temperature.
        finish_reason: "stop" after an end token, "loop" where it began to repeat itself, "length" at `max_new_tokens`.
    """

    tokens: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason


def generate_stream(
    stepper: Stepper,
    prompt_ids: Sequence[Sequence[int]],
    options: GenerationOptions,
    generators: Sequence[torch.Generator] | None = None,
) -> Generator[list[int | None], None, list[list[Generated]]]:
    """Write texts, and hand out their tokens as they come.

    Args:
        stepper: The model, with the prompts given and `start` not yet called.
        prompt_ids: The token ids of each item's prompt, for the filters that look back; lengths may differ.
        options: How to choose tokens, gone through `for_prompt` where they hold `max_length` or `min_length`.
        generators: For sampling, one random generator on the CPU for each item.

    Yields:
        After each step of greedy search or sampling the new token of each row, None for those that had finished;
        row = item x num_captions + caption. Beam search yields nothing.

    Returns:
        For each item its num_captions texts: of beam search the best first, of sampling in the order of the rows.

    Raises:
        ModelError: The model gave logits that are NaN or infinite.
    """
    assert options.max_length is None and options.min_length == 0, "`for_prompt` comes before decoding"
    if options.max_new_tokens == 0 or not prompt_ids:
        return [[_generated((), 0.0, options)] * options.num_captions for _ in prompt_ids]
    if options.num_beams > 1:
        return _search_beams(_Rows(stepper, prompt_ids, options.num_beams), len(prompt_ids), options)
    chooser: Chooser = choose_best
    if options.sampling:
        assert generators is not None and len(generators) == len(prompt_ids), "sampling takes one generator an item"
        chooser = Sampler(generators, options.num_captions)
    texts = yield from _write_rows(_Rows(stepper, prompt_ids, options.num_captions), options, chooser)
    return [texts[first : first + options.num_captions] for first in range(0, len(texts), options.num_captions)]


def generate(
    stepper: Stepper,
    prompt_ids: Sequence[Sequence[int]],
    options: GenerationOptions,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[Generated]]:
    """What `generate_stream` returns, all at once."""
    stream = generate_stream(stepper, prompt_ids, options, generators)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            texts: list[list[Generated]] = end.value
            return texts


class _Rows:
    """The stepper, and beside it the logits and the history of its rows, in the same order.

    Attributes:
        logits_RV: float32, for the next token of each row.
        history: What each row holds so far.
    """

    def __init__(self, stepper: Stepper, prompt_ids: Sequence[Sequence[int]], copies: int) -> None:
        self._stepper = stepper
        self.logits_RV = stepper.start()
        self.history = History(prompt_ids, self.logits_RV.device)
        if copies > 1:
            row_R = torch.arange(len(prompt_ids), device=self.logits_RV.device).repeat_interleave(copies)
            stepper.reorder(row_R)
            self.history.keep(row_R)
            self.logits_RV = self.logits_RV[row_R]

    def __len__(self) -> int:
        return self.logits_RV.shape[0]

    def advance(self, rows: list[int], tokens: list[int]) -> None:
        """Keep these rows in this order, append one token to each, and get the next logits."""
        device = self.logits_RV.device
        if rows != list(range(len(self))):  # reordering copies the stepper's whole cache
            row_R = torch.tensor(rows, device=device)
            self._stepper.reorder(row_R)
            self.history.keep(row_R)
        token_R = torch.tensor(tokens, device=device)
        self.history.append(token_R)
        self.logits_RV = self._stepper.step(token_R)


def _write_rows(
    rows: _Rows, options: GenerationOptions, choose: Chooser
) -> Generator[list[int | None], None, list[Generated]]:
    """Greedy search and sampling: each row goes its own way and leaves when it has finished."""
    filters = build_filters(options)
    live = list(range(len(rows)))  # the first number of each row that is left
    tokens: list[list[int]] = [[] for _ in live]
    logprobs = [0.0 for _ in live]
    while live:
        token_R = choose(apply_filters(filters, rows.logits_RV, rows.history), live)
        logprob_R = rows.logits_RV.log_softmax(dim=-1).gather(1, token_R[:, None]).squeeze(1)
        chosen = token_R.tolist()
        new: list[int | None] = [None] * len(tokens)
        for row, token, logprob in zip(live, chosen, finite(logprob_R.tolist()), strict=True):
            tokens[row].append(token)
            logprobs[row] += logprob
            new[row] = token
        yield new
        open_rows = [place for place, row in enumerate(live) if ending(tokens[row], options) is None]
        live = [live[place] for place in open_rows]
        if live:
            rows.advance(open_rows, [chosen[place] for place in open_rows])
    return [_generated(ids, logprob, options) for ids, logprob in zip(tokens, logprobs, strict=True)]


def _search_beams(rows: _Rows, num_items: int, options: GenerationOptions) -> list[list[Generated]]:
    """Beam search: the beams of an item compete, and leave together when the item is done."""
    filters = build_filters(options)
    # Even if each end token is among the candidates of every beam, and a token that closes a loop, enough others are
    # left to go on with. Never fewer than transformers takes: among equal scores the choice depends on how many are
    # asked for.
    count = options.num_beams * max(2, 1 + len(options.end_token_ids) + options.stop_loops)
    items = [BeamItem(options) for _ in range(num_items)]
    live = items
    while live:
        logprobs_RV = rows.logits_RV.log_softmax(dim=-1)
        scores_RV = apply_filters(filters, logprobs_RV, rows.history)
        for item, candidates in zip(live, best_candidates(scores_RV, logprobs_RV, live, count), strict=True):
            finite(candidate.logprob for candidate in candidates)
            item.advance(candidates)
        parents = [
            place * options.num_beams + beam.parent
            for place, item in enumerate(live)
            for beam in item.beams
            if not item.done
        ]
        live = [item for item in live if not item.done]
        if live:
            rows.advance(parents, [beam.tokens[-1] for item in live for beam in item.beams])
    return [
        [_generated(beam.tokens, beam.logprob, options) for beam in item.finished[: options.num_captions]]
        for item in items
    ]


def _generated(tokens: Sequence[int], logprob: float, options: GenerationOptions) -> Generated:
    reason = ending(tokens, options)
    assert reason is not None, "a text that goes on"
    return Generated(tokens=tuple(tokens), logprob=logprob, finish_reason=reason)


def finite(logprobs: Iterable[float]) -> list[float]:
    """Return log-probabilities as they are; one NaN or infinite logit makes all of its row NaN.

    Raises:
        ModelError: One of them is NaN.
    """
    values = list(logprobs)
    if any(math.isnan(value) for value in values):
        raise ModelError("the model gave a logit that is NaN or infinite; check the checkpoint, or use float32")
    return values
