"""The natural order of names, as compact keys: a folder may hold millions of them."""

import re
from collections.abc import Iterator

_NUMBER = re.compile("([0-9]+)")
_ENCODING = ("utf-8", "surrogatepass")  # keeps the order of code points, and bytes of no encoding as lone surrogates
# Nearly all names differ before so many numbers have gone by; to look for more takes long in those made of hex digits.
_FEW = 3


def natural_key(name: str) -> bytes:
    """Return the sort key that puts `img2` before `img10`, and upper and lower case side by side; ties go by name.

    Args:
        name: a file's name, which holds no NUL; lone surrogates may stand in it, and a `/` at its end does not count.
    """
    return _key(name, 0)


def rough_key(name: str) -> bytes:
    """Return a key for `in_order`, much faster than `natural_key`."""
    return _key(name, _FEW)


def in_order(keys: list[bytes]) -> Iterator[str]:
    """Yield the names that `rough_key` was asked for in the order of `natural_key`; empties the list on the way."""
    keys.sort(reverse=True)
    alike: list[str] = []
    head = None
    while keys:
        rough, name = _parted(keys.pop())
        if rough != head:
            yield from _sorted(alike)
            alike.clear()
            head = rough
        alike.append(name)
    yield from _sorted(alike)


def _key(name: str, numbers: int) -> bytes:
    """Return a key that ends in two NULs and the name itself.

    A number is written as a NUL, the count of its digits, so that longer ones are larger, and the digits. The count
    starts at 1: a smaller key, such as one that ends there, has a second NUL.

    Args:
        name: a file's name.
        numbers: how many are looked at, with the text between them; 0 for all.
    """
    parts = _NUMBER.split(name.removesuffix("/").casefold(), numbers)
    if numbers and len(parts) > 2 * numbers:
        parts.pop()
    # Splitting at a group puts texts on even and numbers on odd places.
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        parts[place] = f"\0{chr(len(digits) + 1)}{digits}"
    return f"{''.join(parts)}\0\0{name}".encode(*_ENCODING)


def _parted(key: bytes) -> tuple[bytes, str]:
    """Return what a key says and the name that it ends with."""
    start = key.rindex(b"\0") + 1
    return key[:start], key[start:].decode(*_ENCODING)


def _sorted(names: list[str]) -> list[str]:
    return names if len(names) < 2 else sorted(names, key=natural_key)
