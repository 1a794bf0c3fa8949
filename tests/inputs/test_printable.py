"""What is escaped before people see it."""

import pytest

from mmt_cli.inputs.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a dog runs.jpg", "a dog runs.jpg"),
        ("Ünï çødé 狗 \U0001f468\u200d\U0001f469", "Ünï çødé 狗 \U0001f468\u200d\U0001f469"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("back\\slash", "back\\slash"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202e\u2066\u061c\u200b\u2028", "\\u202e\\u2066\\u061c\\u200b\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable_escapes_what_steers_a_terminal_and_nothing_else(text, shown):
    assert printable(text) == shown


def test_printable_leaves_what_it_is_told_to_keep():
    assert printable("a\tb\n\r", keep="\t\n") == "a\tb\n\\r"
