"""Text made bytes."""

import io

from mmt_cli.inputs.encoding import KEEP_BYTES, to_bytes


def test_names_keep_their_bytes_and_half_characters_become_escapes():
    assert to_bytes("é\udcff\udc80/\ud83d\udc00\n") == b"\xc3\xa9\xff\x80/\\ud83d\\udc00\n"


def test_a_stream_of_another_encoding_escapes_what_it_lacks():
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii", errors=KEEP_BYTES, write_through=True)
    stream.write("é\udcff")
    assert raw.getvalue() == b"\\xe9\xff"
