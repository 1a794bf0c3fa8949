"""Texts as the metrics see them: words, and how often each run of a few words stands in a sentence."""

import re
from collections import Counter
from collections.abc import Sequence

MAX_NGRAM = 4

_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")

Ngram = tuple[str, ...]


def tokenize(text: str) -> list[str]:
    """Words as the metrics see them: lower case, letters a-z and digits, with one apostrophe part (`dog's`)."""
    return _TOKEN.findall(text.lower())


def ngram_counts(words: Sequence[str]) -> Counter[Ngram]:
    """Return how often each run of 1 to 4 words stands in the sentence."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def word_count(counts: Counter[Ngram]) -> int:
    """Return the words of the sentence that `ngram_counts` counted."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)


def reference_words(references: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Return the words of each reference of each image; at least one image, at least one reference an image."""
    assert references, "no images to score"
    assert all(references), "an image without references"
    assert not any(isinstance(image, str) for image in references), "references of an image are a list, not a string"
    return [[tokenize(text) for text in image] for image in references]


def check_count(candidates: Sequence[str], references: Sequence[object]) -> None:
    """Fail where there is not one candidate an image."""
    assert len(candidates) == len(references), f"{len(candidates)} candidates for {len(references)} images"
