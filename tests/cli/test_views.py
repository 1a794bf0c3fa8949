"""What a result looks like where no terminal shows it."""

import pytest

from mmt_cli.cli import plain_views, tables, views
from mmt_cli.cli.views import Lines, Sheet, View

PARTS = [
    Sheet(
        columns=("module", "modality", "parameters", "share"),
        rows=[
            ("  a", "text", "1,000", "99.9%"),
            ("犬が走る" * 4, "", "1", "0.1%"),
            ("a" * 300, "\x1b[31m", "-", "[b]"),
        ],
        left=2,
        total=("total", "", "1,001", "100.0%"),
    ),
    "note: \x1b[31mred\n[bold]",
    Lines(lines=["one", "two " * 400]),
    Sheet(columns=("file", "sha256"), rows=[("x", "é" * 20)], left=2),
    Sheet(columns=("n", "bytes"), rows=[]),
    Sheet(columns=("n", "bytes"), rows=[(str(i), "1 B") for i in range(views.MOST_ROWS + 5)]),
]
VIEW = View(title="a \x9b title", parts=lambda: PARTS, records=list, record=dict)


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_pipe_gets_the_lines_that_rich_would_draw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain_views.is_plain()
    views.show(VIEW, "table")
    plain = capsys.readouterr().out
    monkeypatch.setattr(plain_views, "is_plain", lambda: False)
    views.show(VIEW, "table")
    drawn = capsys.readouterr().out
    assert plain.splitlines() == [line.rstrip() for line in drawn.splitlines()]
    assert "\x1b" not in plain and "\x9b" not in plain


@pytest.mark.parametrize(("name", "value"), [("COLUMNS", "90"), ("FORCE_COLOR", "1")])
def test_where_rich_does_more_it_draws(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not plain_views.is_plain()


def test_letters_that_are_not_ascii_are_as_wide_as_on_a_terminal() -> None:
    text = plain_views.table(("a", "b"), [("犬", "1"), ("x", "22")], 1, None)
    assert text.splitlines()[2:] == [
        "犬" + " " * (tables.NARROWEST - 2) + "   1",
        "x" + " " * (tables.NARROWEST - 1) + "  22",
    ]
