"""Text made bytes, whatever it holds: file names keep the bytes that are in no encoding."""

import codecs

KEEP_BYTES = "mmt_keep_bytes"  # as the `errors` of a stream


def to_bytes(text: str) -> bytes:
    """Return `text` in UTF-8; bytes of file names as they were, other lone surrogates as an escape in ASCII."""
    return text.encode("utf-8", KEEP_BYTES)


def _keep_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what an encoding cannot: bytes of file names as they were, other characters escaped."""
    assert isinstance(error, UnicodeEncodeError)
    out = b""
    for character in error.object[error.start : error.end]:
        code = ord(character)
        is_byte = 0xDC80 <= code <= 0xDCFF
        out += bytes([code - 0xDC00]) if is_byte else character.encode("ascii", "backslashreplace")
    return out, error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)
