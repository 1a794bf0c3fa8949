"""When a text has begun to repeat itself without end. Pure Python on token ids; imports no torch."""

from collections.abc import Sequence

MAX_PERIOD = 64  # tokens of the longest block that is looked for: a long sentence


def repeats_needed(period: int) -> int:
    """Return how often a block of so many tokens stands in a row before a text loops.

    The shorter the block, the more often people repeat it on purpose. One token is a syllable, a digit or a dot ("very
    very very", "1000", "..."), two to five are a word or two ("blah blah"), but six tokens in a row, verbatim and with
    nothing between, are a phrase that nobody writes twice: "a man and a woman and a man and a woman and".
    """
    if period == 1:
        return 4
    return 3 if period < 6 else 2


_REACH = max(period * repeats_needed(period) for period in range(1, MAX_PERIOD + 1))


def loops(tokens: Sequence[int]) -> bool:
    """Say whether a text ends in a block of tokens that stands there `repeats_needed` times in a row.

    Only the last tokens are looked at, so that the time does not grow with the text.
    """
    tail = tokens[-_REACH:]
    for period in range(1, min(MAX_PERIOD, len(tail) - 1) + 1):
        if tail[-1 - period] != tail[-1]:
            continue
        length = period * repeats_needed(period)
        if len(tail) >= length and tail[-length:-period] == tail[period - length :]:
            return True
    return False
