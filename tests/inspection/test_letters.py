"""Text on pictures, in fonts that a machine has or has not."""

import pytest
from PIL import ImageFont

from mmt_cli.inspection import letters


@pytest.fixture(params=[True, False], ids=["fonts", "no fonts"])
def has_fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the machine has fonts of its own."""
    if not request.param:
        monkeypatch.setattr(letters, "_FACES", ())
    elif not _there():
        pytest.skip("no such font on this machine")
    for kept in (letters._face, letters._faces):
        kept.cache_clear()
    request.addfinalizer(letters._face.cache_clear)
    request.addfinalizer(letters._faces.cache_clear)
    return bool(request.param)


def _there() -> bool:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 10)
    except OSError:
        return False
    return True


def test_what_pillows_own_font_lacks_comes_from_one_of_the_machine(has_fonts: bool) -> None:
    assert letters.drawable("naïve собака") == ("naïve собака" if has_fonts else "na?ve ??????")
    assert letters.drawable("a dog.") == "a dog."
    assert letters.font("a dog.", 20).getname() == ImageFont.load_default(20).getname()
    assert (letters.font("собака", 20).getname() != letters.font("dog", 20).getname()) == has_fonts


def test_what_no_font_has_is_a_question_mark(has_fonts: bool) -> None:
    assert letters.drawable("a \U00013000") == "a ?"  # a hieroglyph
    assert letters.drawable("\x1b[31m") == "\\x1b[31m"


def test_lines_are_as_wide_as_they_may_be(has_fonts: bool) -> None:
    lines = letters.wrapped("собака a dog " * 9 + "a" * 200, 200, 20)
    assert len(lines) > 5 and lines[-1].endswith("…")
    assert all(letters.length(line, 20) <= 200 for line in lines)
