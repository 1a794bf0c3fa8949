"""ROUGE-L: the longest run of words, gaps allowed, that a caption and a reference share."""

from collections.abc import Sequence

from mmt_cli.training.metrics.scorer import Row, mean
from mmt_cli.training.metrics.words import check_count, reference_words, tokenize

_BETA = 1.2  # how much more recall counts than precision; the tool's


class RougeScorer:
    """ROUGE-L against fixed references: the best precision and the best recall of them all, as the tool has it."""

    names = ("rouge_l",)

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._references = [[_at_least_one(words) for words in image] for image in reference_words(references)]

    def rows(self, candidates: Sequence[str]) -> list[Row]:
        """Return the score of each image, 0 to 1, and a 1."""
        check_count(candidates, self._references)
        return [
            (_score(_at_least_one(tokenize(candidate)), references), 1.0)
            for candidate, references in zip(candidates, self._references, strict=True)
        ]

    def figures(self, total: Sequence[float]) -> tuple[float, ...]:
        """Return the mean."""
        return mean(total)


def _score(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = [_common(words, reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(count / len(reference) for count, reference in zip(common, references, strict=True))
    if precision == 0.0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)  # entry i: of what came of `first` and the first i words of `second`
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def _at_least_one(words: list[str]) -> list[str]:
    """Return the words; the tool takes a text without any for one empty word."""
    return words or [""]
