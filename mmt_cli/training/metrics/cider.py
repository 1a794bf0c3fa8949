"""CIDEr: n-grams shared with the references of an image, those that tell images apart weighing most."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from mmt_cli.training.metrics.scorer import Row, mean
from mmt_cli.training.metrics.words import MAX_NGRAM, Ngram, check_count, ngram_counts, reference_words, tokenize
from mmt_cli.training.metrics.words import word_count as count_words

_SIGMA = 6.0  # words; width of the length penalty
_SCALE = 10.0

Weights = list[dict[Ngram, float]]  # entry n - 1 holds the n-grams of n words


class Vector:
    """TF-IDF weights of a sentence, their Euclidean norm for each n, and its length in words."""

    __slots__ = ("norms", "weights", "words")

    def __init__(self, weights: Weights, words: int) -> None:
        self.weights = weights
        self.norms = [math.sqrt(math.fsum(weight * weight for weight in part.values())) for part in weights]
        self.words = words


class Rarity:
    """How much an n-gram weighs: the log of how many images there are to one whose references hold it."""

    def __init__(self, images: Iterable[Sequence[Counter[Ngram]]]) -> None:
        """Count once.

        Args:
            images: the n-grams of each image's references.
        """
        frequency: Counter[Ngram] = Counter()
        count = 0
        for references in images:
            frequency.update(set().union(*references))
            count += 1
        self._unseen = math.log(count)
        # One image's own n-grams, most of all, weigh what those of no image do.
        self._weight = {ngram: self._unseen - math.log(seen) for ngram, seen in frequency.items() if seen > 1}

    def vector(self, counts: Counter[Ngram]) -> Vector:
        """Return what `similarity` compares of the sentence that `ngram_counts` counted."""
        weights: Weights = [{} for _ in range(MAX_NGRAM)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * self._weight.get(ngram, self._unseen)
        return Vector(weights, count_words(counts))


def similarity(candidate: Vector, references: Sequence[Vector]) -> tuple[float, float]:
    """Return CIDEr-D and plain CIDEr of a sentence, 0 to 10 (a published "CIDEr 45" is 0.45)."""
    pairs = [_similarity(candidate, reference) for reference in references]
    clipped, plain = (_SCALE * math.fsum(values) / len(references) for values in zip(*pairs, strict=True))
    return clipped, plain


class CiderScorer:
    """CIDEr against fixed references.

    `cider` is what the tool calls so, and what is published under this name: CIDEr-D, with clipped weights and a length
    penalty, without the paper's stemming. `cider_plain` has neither of the two: the paper's CIDEr, again without
    stemming. The weights of n-grams come from these references: an n-gram of every image weighs nothing, so a set of
    one image scores 0.
    """

    names = ("cider", "cider_plain")

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[ngram_counts(words) for words in image] for image in reference_words(references)]
        self._rarity = Rarity(counts)
        self._references = [[self._rarity.vector(reference) for reference in image] for image in counts]

    def rows(self, candidates: Sequence[str]) -> list[Row]:
        """Return both scores of each image, 0 to 10, and a 1."""
        check_count(candidates, self._references)
        return [
            (*similarity(self._rarity.vector(ngram_counts(tokenize(candidate))), references), 1.0)
            for candidate, references in zip(candidates, self._references, strict=True)
        ]

    def figures(self, total: Sequence[float]) -> tuple[float, ...]:
        """Return the mean of both."""
        return mean(total)


def _similarity(candidate: Vector, reference: Vector) -> tuple[float, float]:
    """Return cosine similarities averaged over n: with weights clipped to the reference's and length penalty, and so.

    The sums run in the order of the words: their last bits are the same in every process.
    """
    clipped = plain = 0.0
    for n in range(MAX_NGRAM):
        norms = candidate.norms[n] * reference.norms[n]
        if norms == 0.0:
            continue  # one of the two has no n-gram of this length that weighs anything
        theirs = reference.weights[n]
        shared = whole = 0.0
        for ngram, weight in candidate.weights[n].items():
            other = theirs.get(ngram)
            if other is not None:
                shared += min(weight, other) * other
                whole += weight * other
        clipped += shared / norms
        plain += whole / norms
    difference = candidate.words - reference.words
    return clipped / MAX_NGRAM * math.exp(-(difference**2) / (2 * _SIGMA**2)), plain / MAX_NGRAM
