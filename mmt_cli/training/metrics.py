"""CIDEr and BLEU of captions, equal to the COCO caption evaluation tool's `Cider` and `Bleu` on our tokens.

Sources: Vedantam et al. 2015 (arXiv:1411.5726) for CIDEr, Papineni et al. 2002 for BLEU. Where the tool departs from
the papers it is followed and the departure is named, so that figures can be compared with published ones.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_NGRAM = 4

_CIDER_SIGMA = 6.0  # words; width of CIDEr's length penalty
_CIDER_SCALE = 10.0
# The tool's two constants against division by zero; 1e-15 / 1e-9 makes an impossible n-gram length count as 1e-6.
_BLEU_TINY = 1e-15
_BLEU_SMALL = 1e-9

_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")

Ngram = tuple[str, ...]
Weights = list[dict[Ngram, float]]  # entry n - 1 holds the n-grams of n words


def tokenize(text: str) -> list[str]:
    """Words as the metrics see them: lower case, letters a-z and digits, with one apostrophe part (`dog's`)."""
    return _TOKEN.findall(text.lower())


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """CIDEr of one candidate an image against its references; see `CiderScorer`."""
    return CiderScorer(references).score(candidates)


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1 to BLEU-4 of one candidate an image against its references; see `BleuScorer`."""
    return BleuScorer(references).score(candidates)


class CiderScorer:
    """CIDEr against fixed references, prepared once; at least one image, at least one reference an image.

    The weights of n-grams come from these references: an n-gram of every image weighs nothing, so a set of one image
    scores 0. Like the tool this is CIDEr with CIDEr-D's clipping and length penalty, without stemming.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = _reference_counts(references)
        frequency: Counter[Ngram] = Counter()
        for image in counts:
            frequency.update(set().union(*image))
        self._unseen_weight = math.log(len(references))
        self._weight = {ngram: self._unseen_weight - math.log(images) for ngram, images in frequency.items()}
        self._references = [[self._vector(reference) for reference in image] for image in counts]

    def score(self, candidates: Sequence[str]) -> tuple[float, list[float]]:
        """The mean over the images and the score of each, 0 to 10 (a published "CIDEr 45" is 0.45)."""
        _check_count(candidates, self._references)
        scores = [
            self._image_score(candidate, image) for candidate, image in zip(candidates, self._references, strict=True)
        ]
        return math.fsum(scores) / len(scores), scores

    def _image_score(self, candidate: str, references: "Sequence[_Vector]") -> float:
        vector = self._vector(_ngram_counts(tokenize(candidate)))
        total = math.fsum(_similarity(vector, reference) for reference in references)
        return _CIDER_SCALE * total / len(references)

    def _vector(self, counts: Counter[Ngram]) -> "_Vector":
        weights: Weights = [{} for _ in range(MAX_NGRAM)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * self._weight.get(ngram, self._unseen_weight)
        return _Vector(weights, _word_count(counts))


class BleuScorer:
    """Corpus BLEU against fixed references, prepared once; at least one image, at least one reference an image."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = _reference_counts(references)
        self._most = [_largest_counts(image) for image in counts]
        self._lengths = [[_word_count(reference) for reference in image] for image in counts]

    def score(self, candidates: Sequence[str]) -> tuple[float, float, float, float]:
        """BLEU-1, -2, -3, -4, 0 to 1, with the brevity penalty on the reference length closest to each candidate's."""
        _check_count(candidates, self._most)
        correct, possible = [0] * MAX_NGRAM, [0] * MAX_NGRAM
        candidate_words = reference_words = 0
        for candidate, most, lengths in zip(candidates, self._most, self._lengths, strict=True):
            words = tokenize(candidate)
            for ngram, count in _ngram_counts(words).items():
                possible[len(ngram) - 1] += count
                correct[len(ngram) - 1] += min(count, most.get(ngram, 0))
            candidate_words += len(words)
            reference_words += _closest(lengths, len(words))
        penalty = _brevity_penalty(candidate_words, reference_words)
        first, second, third, fourth = (penalty * mean for mean in _running_means(correct, possible))
        return first, second, third, fourth


class _Vector:
    """TF-IDF weights of a sentence, their Euclidean norm for each n, and its length in words."""

    __slots__ = ("norms", "weights", "words")

    def __init__(self, weights: Weights, words: int) -> None:
        self.weights = weights
        self.norms = [math.sqrt(math.fsum(weight * weight for weight in part.values())) for part in weights]
        self.words = words


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Cosine similarity averaged over n, each candidate weight clipped to the reference's, times a length penalty."""
    total = 0.0
    for n in range(MAX_NGRAM):
        norms = candidate.norms[n] * reference.norms[n]
        if norms == 0.0:
            continue  # one of the two has no n-gram of this length that weighs anything
        theirs = reference.weights[n]
        shared = 0.0
        for ngram, weight in candidate.weights[n].items():
            other = theirs.get(ngram, 0.0)
            shared += min(weight, other) * other
        total += shared / norms
    difference = candidate.words - reference.words
    return total / MAX_NGRAM * math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))


def _running_means(correct: Sequence[int], possible: Sequence[int]) -> list[float]:
    """Geometric means of the n-gram precisions up to n, for n = 1 to 4."""
    means = []
    product = 1.0
    for n in range(MAX_NGRAM):
        product *= (correct[n] + _BLEU_TINY) / (possible[n] + _BLEU_SMALL)
        means.append(product ** (1 / (n + 1)))
    return means


def _closest(lengths: Iterable[int], own: int) -> int:
    """The length closest to `own`; of two equally close ones the shorter."""
    return min(lengths, key=lambda length: (abs(length - own), length))


def _brevity_penalty(candidate_words: int, reference_words: int) -> float:
    ratio = (candidate_words + _BLEU_TINY) / (reference_words + _BLEU_SMALL)
    return math.exp(1 - 1 / ratio) if ratio < 1 else 1.0


def _ngram_counts(words: Sequence[str]) -> Counter[Ngram]:
    """How often each run of 1 to 4 words stands in the sentence."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _word_count(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)


def _largest_counts(counts: Iterable[Counter[Ngram]]) -> dict[Ngram, int]:
    """How often an n-gram stands in the reference that has most of it; a candidate is credited no more."""
    most: dict[Ngram, int] = {}
    for each in counts:
        for ngram, count in each.items():
            if count > most.get(ngram, 0):
                most[ngram] = count
    return most


def _reference_counts(references: Sequence[Sequence[str]]) -> list[list[Counter[Ngram]]]:
    assert references, "no images to score"
    assert all(references), "an image without references"
    assert not any(isinstance(image, str) for image in references), "references of an image are a list, not a string"
    return [[_ngram_counts(tokenize(text)) for text in image] for image in references]


def _check_count(candidates: Sequence[str], references: Sequence[object]) -> None:
    assert len(candidates) == len(references), f"{len(candidates)} candidates for {len(references)} images"
