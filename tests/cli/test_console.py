"""What is escaped, coloured and shown where."""

import errno
import io
import sys

import pytest

from mmt_cli.cli import console
from mmt_cli.cli.console import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_results_are_as_they_are_in_a_pipe_and_escaped_on_a_terminal(monkeypatch):
    text = "a\x1b[1m\t\u202eb\n"
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    console.emit(text)
    assert pipe.getvalue() == text
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.emit(text)
    assert terminal.getvalue() == "a\\x1b[1m\t\\u202eb\n"


def test_results_are_flushed_at_once(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"))
    console.emit("x\n")
    assert raw.getvalue() == b"x\n"


def test_a_note_is_one_line_whatever_it_holds(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    console.note("mmt: a\nb\x1b")
    assert stream.getvalue() == "mmt: a\\nb\\x1b\n"


def test_a_stderr_that_takes_no_more_does_not_end_the_run(monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", stream := Full())
    console.note("x")
    assert stream.getvalue() == "x\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_stdout_keeps_the_bytes_of_names_and_never_fails(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    console.prepare_streams()
    console.emit("é\udcff\ud800狗")
    expected = {"utf-8": "é".encode(), "ascii": b"\\xe9", "latin-1": b"\xe9"}[encoding]
    dog = "狗".encode() if encoding == "utf-8" else b"\\u72d7"
    assert raw.getvalue() == expected + b"\xff" + b"\\ud800" + dog


@pytest.mark.parametrize(
    ("variables", "is_terminal", "colour"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_follows_the_environment(monkeypatch, variables, is_terminal, colour):
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.use_colour(Terminal() if is_terminal else io.StringIO()) is colour


@pytest.mark.parametrize(
    ("stderr", "stdout", "term", "quiet", "shown"),
    [
        (Terminal, io.StringIO, "xterm", False, True),
        (Terminal, io.StringIO, "xterm", True, False),
        (Terminal, io.StringIO, "dumb", False, False),
        (Terminal, Terminal, "xterm", False, False),
        (io.StringIO, io.StringIO, "xterm", False, False),
    ],
)
def test_the_bar_is_shown_on_a_terminal_that_does_not_show_the_results(monkeypatch, stderr, stdout, term, quiet, shown):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take anything for a terminal
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(sys, "stdout", stdout())
    results = sys.stdout
    with Progress(quiet=quiet) as progress:
        assert sys.stdout is results
        progress.advance()
        progress.note("mmt: [b]\x1bx: is gone")
    written = sys.stderr.getvalue()
    assert "mmt: [b]\\x1bx: is gone\n" in written
    assert ("images: 1" in written) is shown
    assert sys.stdout.getvalue() == ""
    if not shown:
        assert written == "mmt: [b]\\x1bx: is gone\n"
