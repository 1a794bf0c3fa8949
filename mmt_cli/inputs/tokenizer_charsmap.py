"""Checks a `Precompiled` normalizer: SentencePiece's table of character replacements, as a double-array trie.

The library walks the trie without looking at its borders, so a broken table makes it panic in the middle of a text.
Layout (sentencepiece `normalizer.cc`, darts-clone): the trie's bytes as a little-endian 32-bit number, the trie as
32-bit units, then the replacements as UTF-8, each closed by a NUL. A unit holds a label (bits 0 to 7 and 31), whether
a replacement ends here (bit 8), and how far its children are (bits 10 to 30, times 256 with bit 9). A replacement's
unit holds its place among the replacements.
"""

import base64
import binascii
import struct

from mmt_cli.inputs.tokenizer_require import require

_MAX_CHARS = 4 * 1024 * 1024
_MAX_STATES = 40_000  # nmt_nfkc has between 10,000 and 20,000; each costs 255 looks
_MAX_REPLACEMENT = 64  # bytes; the longest of NFKC has 33


def check_charsmap(encoded: object) -> None:
    """Check the base64 text of a table.

    Raises:
        ValueError: it is no such table, or one in which the library would leave its borders.
    """
    require(isinstance(encoded, str) and len(encoded) <= _MAX_CHARS, "normalizer Precompiled holds no table", encoded)
    try:
        table = base64.b64decode(str(encoded), validate=True)
    except binascii.Error as error:
        raise ValueError(f"normalizer Precompiled is no base64: {error}") from error
    size = int.from_bytes(table[:4], "little")
    require(len(table) >= 4 + size and size % 4 == 0 and size > 0, "the table of Precompiled is cut short", size)
    units = struct.unpack(f"<{size // 4}I", table[4 : 4 + size])
    texts = table[4 + size :]
    texts.decode("utf-8")  # UnicodeDecodeError is a ValueError
    seen, todo = set[int](), [_offset(units[0])]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        require(len(seen) <= _MAX_STATES, f"the table of Precompiled has more than {_MAX_STATES} states", len(seen))
        # The next unit is at any of the 256 places that differ in the last 8 bits.
        require(state | 255 < len(units), "the table of Precompiled points outside itself", state)
        for label in range(1, 256):
            unit = units[state ^ label]
            if unit & 0x8000_00FF == label:
                below = (state ^ label) ^ _offset(unit)
                todo.append(below)
                if unit >> 8 & 1:
                    require(below < len(units), "the table of Precompiled points outside itself", below)
                    _check_replacement(texts, units[below] & 0x7FFF_FFFF)


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _check_replacement(texts: bytes, start: int) -> None:
    fits = start < len(texts) and texts[start] & 0xC0 != 0x80  # not in the middle of a character
    require(fits, "a replacement of Precompiled lies outside its texts", start)
    stop = texts.find(b"\0", start)
    length = (len(texts) if stop < 0 else stop) - start
    require(length <= _MAX_REPLACEMENT, "a replacement of Precompiled is too long", length)
