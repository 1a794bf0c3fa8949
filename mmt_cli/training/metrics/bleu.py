"""BLEU: how many of a caption's n-grams its references hold too."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from mmt_cli.training.metrics.scorer import Row
from mmt_cli.training.metrics.words import MAX_NGRAM, Ngram, check_count, ngram_counts, reference_words, tokenize

# The tool's two constants against division by zero; 1e-15 / 1e-9 makes an impossible n-gram length count as 1e-6.
_TINY = 1e-15
_SMALL = 1e-9


class BleuScorer:
    """BLEU-1 to BLEU-4 against fixed references, with a brevity penalty on the length closest to each candidate's."""

    names = ("bleu1", "bleu2", "bleu3", "bleu4")

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        words = reference_words(references)
        self._most = [_largest_counts(map(ngram_counts, image)) for image in words]
        self._lengths = [[len(reference) for reference in image] for image in words]

    def rows(self, candidates: Sequence[str]) -> list[Row]:
        """Return for each image how many n-grams are right, how many there are, and both lengths in words."""
        check_count(candidates, self._most)
        return [
            _row(tokenize(candidate), most, lengths)
            for candidate, most, lengths in zip(candidates, self._most, self._lengths, strict=True)
        ]

    def figures(self, total: Sequence[float]) -> tuple[float, ...]:
        """Return BLEU-1 to BLEU-4, 0 to 1: the geometric means of the precisions up to n, and the brevity penalty."""
        right, possible, (words, wanted) = total[:MAX_NGRAM], total[MAX_NGRAM:-2], total[-2:]
        ratio = (words + _TINY) / (wanted + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        figures = []
        product = 1.0
        for n in range(MAX_NGRAM):
            product *= (right[n] + _TINY) / (possible[n] + _SMALL)
            figures.append(penalty * product ** (1 / (n + 1)))
        return tuple(figures)


def _row(words: Sequence[str], most: dict[Ngram, int], lengths: Iterable[int]) -> Row:
    right = [0] * MAX_NGRAM
    for ngram, count in ngram_counts(words).items():
        right[len(ngram) - 1] += min(count, most.get(ngram, 0))
    possible = (max(0, len(words) - n) for n in range(MAX_NGRAM))
    return (*right, *possible, len(words), _closest(lengths, len(words)))


def _closest(lengths: Iterable[int], own: int) -> int:
    """Return the length closest to `own`; of two equally close ones the shorter."""
    return min(lengths, key=lambda length: (abs(length - own), length))


def _largest_counts(counts: Iterable[Counter[Ngram]]) -> dict[Ngram, int]:
    """Return how often an n-gram stands in the reference that has most of it; a candidate is credited no more."""
    most: dict[Ngram, int] = {}
    for each in counts:
        for ngram, count in each.items():
            if count > most.get(ngram, 0):
                most[ngram] = count
    return most
