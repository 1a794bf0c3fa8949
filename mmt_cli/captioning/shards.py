"""The share of one machine among many that caption the same images."""

import itertools
import re
from collections.abc import Iterable, Iterator

from mmt_cli.captioning.items import Item
from mmt_cli.errors import UsageError, shown

MAX_SHARDS = 1_000_000_000


def parse_shard(text: str) -> tuple[int, int]:
    """Read `I/N`.

    Returns:
        (I, N), where 0 <= I < N <= `MAX_SHARDS`.

    Raises:
        UsageError: it is anything else.
    """
    # int() also takes other scripts' digits, underscores and spaces.
    match = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not index < count <= MAX_SHARDS:
        expected = f"I/N with I from 0 to N - 1 and N up to {MAX_SHARDS}"
        raise UsageError(f"bad value for --shard (got {shown(text)}, expected {expected}); count machines from 0")
    return index, count


def take_shard(items: Iterable[Item], shard: tuple[int, int]) -> Iterator[Item]:
    """Yield every N-th item, beginning with number I: all N shards of one list cover it exactly once.

    Args:
        items: what to caption, the same and in the same order on every machine.
        shard: (I, N).
    """
    index, count = shard
    return itertools.islice(items, index, None, count)
