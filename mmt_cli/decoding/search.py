"""How the next token is chosen: the best one, a random one, or the best continuations of several beams.

Shapes: R rows (texts being written), V vocabulary, B items, C continuations of an item (its beams x V),
K the best of these.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmt_cli.decoding.ending import ending
from mmt_cli.decoding.options import GenerationOptions

_RULED_OUT = -math.inf  # score of a beam that only fills its row, and of one with a token that the filters ruled out


class Chooser(Protocol):
    """Chooses a token for each row."""

    def __call__(self, scores_RV: Tensor, rows: Sequence[int], /) -> Tensor:
        """Return token_R (int64) for scores_RV; `rows` are the numbers that these rows had before any finished."""


def choose_best(scores_RV: Tensor, rows: Sequence[int]) -> Tensor:
    """token_R (int64), the highest score of each row."""
    return scores_RV.argmax(dim=-1)


class Sampler:
    """Draws tokens from the softmax of their scores, with one random generator an item.

    A row takes one number of its item's generator at each step, whatever else is in the batch and whichever of the
    item's other rows have finished.

    Args:
        generators: One for each item, on the CPU so that a seed means the same on every device.
        num_captions: Rows of each item; row r belongs to item r // num_captions.
    """

    def __init__(self, generators: Sequence[torch.Generator], num_captions: int) -> None:
        self._generators = generators
        self._num_captions = num_captions

    def __call__(self, scores_RV: Tensor, rows: Sequence[int]) -> Tensor:
        """token_R (int64), found where the cumulative probability passes a uniform random number."""
        cumulative_RV = scores_RV.softmax(dim=-1).cumsum(dim=-1)
        threshold_R = self._uniform(rows).to(scores_RV.device) * cumulative_RV[:, -1]
        token_R1 = torch.searchsorted(cumulative_RV, threshold_R[:, None], right=True)
        # Past the last token only in a row of NaN: the model's fault, or the filters left no token at all.
        return token_R1.squeeze(1).clamp(max=scores_RV.shape[1] - 1)

    def _uniform(self, rows: Sequence[int]) -> Tensor:
        count = self._num_captions
        drawn = {
            item: torch.rand(count, generator=self._generators[item]) for item in {row // count: None for row in rows}
        }
        return torch.stack([drawn[row // count][row % count] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Beam:
    """One text of a beam search.

    Attributes:
        tokens: Ids generated so far.
        score: Sum of the filtered log-probabilities, which beams compete by.
        logprob: Sum of the model's own log-probabilities.
        parent: Which of the item's beams it continues, counted before this step.
    """

    tokens: tuple[int, ...]
    score: float
    logprob: float
    parent: int


class Candidate(NamedTuple):
    """A beam and a token that may continue it; score and logprob as in `Beam`, logprob of the token alone."""

    score: float
    logprob: float
    beam: int
    token: int


class BeamItem:
    """The beams of one item and its finished texts; what transformers 5 calls running and finished sequences.

    Attributes:
        beams: Open beams, best first; always `num_beams` of them until the item is done.
        done: Whether no later text can enter `finished`.
    """

    def __init__(self, options: GenerationOptions) -> None:
        self._options = options
        self._finished: list[tuple[float, Beam]] = []
        # All beams begin alike: only the first may compete, or each would write the same text.
        scores = [0.0] + [_RULED_OUT] * (options.num_beams - 1)
        self.beams = [Beam(tokens=(), score=score, logprob=0.0, parent=0) for score in scores]
        self.done = False

    @property
    def finished(self) -> list[Beam]:
        """Finished texts, at most `num_beams`, best first by their length-normalised score."""
        return [beam for _, beam in self._finished]

    def advance(self, candidates: Sequence[Candidate]) -> None:
        """Sort the candidates, which come best first, into finished texts and open beams."""
        options = self._options
        length = len(self.beams[0].tokens) + 1
        last = length == options.max_new_tokens
        opened: list[Beam] = []
        for rank, candidate in enumerate(candidates):
            beam = self._extend(candidate)
            if ending(beam.tokens, options) is not None:
                # Only a text among the best num_beams may finish, so that poor short ones do not fill the list;
                # one with a token that was ruled out may only where there is no later step.
                if rank < options.num_beams and (last or candidate.score > _RULED_OUT):
                    self._finished.append((beam.score / math.pow(length, options.length_penalty), beam))
            elif len(opened) < options.num_beams:
                opened.append(beam)
        if not last and len(opened) < options.num_beams:
            opened += self._fillers(candidates, options.num_beams - len(opened))
        self._finished.sort(key=lambda scored: scored[0], reverse=True)
        del self._finished[options.num_beams :]
        self.beams = opened
        self.done = last or self._is_decided(length)

    def _fillers(self, candidates: Sequence[Candidate], count: int) -> list[Beam]:
        """Beams that only fill their rows: in a vocabulary of a few tokens too many of them may end a text."""
        ends = self._options.end_token_ids
        spare = next((candidate for candidate in candidates if candidate.token not in ends), candidates[0])
        return [dataclasses.replace(self._extend(spare), score=_RULED_OUT)] * count

    def _extend(self, candidate: Candidate) -> Beam:
        parent = self.beams[candidate.beam]
        return Beam(
            tokens=(*parent.tokens, candidate.token),
            score=candidate.score,
            logprob=parent.logprob + candidate.logprob,
            parent=candidate.beam,
        )

    def _is_decided(self, length: int) -> bool:
        options = self._options
        if len(self._finished) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        # A positive length penalty favours long texts, so the best that can be hoped for is the full length.
        hopeful = options.early_stopping == "never" and options.length_penalty > 0
        reach = options.max_new_tokens if hopeful else length
        return self.beams[0].score / math.pow(reach, options.length_penalty) <= self._finished[-1][0]


def best_candidates(
    scores_RV: Tensor, logprobs_RV: Tensor, items: Sequence[BeamItem], count: int
) -> list[list[Candidate]]:
    """The best continuations of each item.

    Args:
        scores_RV: float32, filtered log-probabilities; R = items x beams, item by item.
        logprobs_RV: float32, the model's own log-probabilities.
        items: The items that these rows belong to.
        count: How many candidates to return for each item; fewer where there are fewer.
    """
    vocabulary = scores_RV.shape[1]
    beam_score_R1 = scores_RV.new_tensor([[beam.score] for item in items for beam in item.beams])
    total_BC = (scores_RV + beam_score_R1).view(len(items), -1)
    total_BK, index_BK = total_BC.topk(min(count, total_BC.shape[1]))
    logprob_BK = logprobs_RV.reshape(len(items), -1).gather(1, index_BK)
    columns = zip(total_BK.tolist(), logprob_BK.tolist(), index_BK.tolist(), strict=True)
    return [
        [
            Candidate(score, logprob, index // vocabulary, index % vocabulary)
            for score, logprob, index in zip(*item, strict=True)
        ]
        for item in columns
    ]
