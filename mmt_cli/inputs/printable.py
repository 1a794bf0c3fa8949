"""Text from outside made safe to show to people: on a terminal, in a page."""

import unicodedata

# Control, format (bidi marks, zero-width marks), lone surrogates, line and paragraph separators.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINER = "\u200d"


def printable(text: str, *, keep: str = "") -> str:
    r"""Return `text` with everything escaped that could steer a terminal or hide what is there.

    Escape codes, bidi marks, newlines and bytes of no encoding become `\x1b`, `\u202e`, `\n`, `\xff`. Letters of
    every script stay, and the joiner that emoji are built with. For rich, wrap the result in `rich.text.Text`,
    which reads no `[markup]`.

    Args:
        text: a file name, a caption, metadata: anything from outside.
        keep: control characters to leave alone, such as the tab of a `path<TAB>caption` line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _is_unsafe(c) else _escape(c) for c in text)


def _is_unsafe(character: str) -> bool:
    return character != _JOINER and unicodedata.category(character) in _UNSAFE


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not in the file system's encoding
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
