"""The frame of all commands: help, version, errors in one line, exit codes, signals, streams."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer

import mmt_cli
from mmt_cli import errors
from mmt_cli.cli import app, outcome
from mmt_cli.cli.app import build

ROOT = Path(mmt_cli.__file__).parent.parent
ORDER = ["caption", "train", "inspect", "bench"]
MMT = [sys.executable, "-m", "mmt_cli"]
# Unbuffered streams would hide what is lost when a stream fails late.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}

NEEDS_DEV_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def run(*arguments: str, code: str | None = None, **options) -> subprocess.CompletedProcess:
    """Run `mmt` in a process of its own, or Python code instead."""
    command = [*MMT, *arguments] if code is None else [sys.executable, "-c", code]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False, **options)


def in_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run `mmt` with streams that only a shell can make."""
    script = f'exec "$0" "$@" {redirection}'
    command = ["sh", "-c", script, *MMT, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


# What a person sees first.


@pytest.mark.parametrize("name", ["--help", "-h"])
@pytest.mark.parametrize("command", [[], *([command.__name__] for command in app.COMMANDS)])
def test_help_goes_to_stdout_and_fits_80_columns(mmt, command, name):
    ended = mmt(*command, name)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: mmt ")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "\x1b" not in ended.out


def option_rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if re.match(r"  (-\w, )?--[\w\[]", line)]


def test_every_option_of_caption_takes_one_line_of_help(mmt):
    page = mmt("caption", "-h").out
    assert len(option_rows(page)) == len(build().commands["caption"].params)
    assert all(re.search(r"\S  +\S", row) for row in option_rows(page))
    assert not [line for line in page.splitlines() if line.startswith(" " * 8)]
    assert page.split("\n\n")[-1].startswith("Options:\n")


def test_help_texts_stand_in_one_column_beside_longer_names_too(capsys, monkeypatch):
    def caption(
        short: Annotated[int, typer.Option(help="First.")] = 0,
        long: Annotated[int, typer.Option("--an-option-with-a-very-long-name", help="Second.")] = 0,
        other: Annotated[int, typer.Option(help="Third.", rich_help_panel="Elsewhere")] = 0,
    ) -> None:
        pass

    monkeypatch.setattr(app, "COMMANDS", (caption,))
    app.main(["caption", "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.index(word) for word in ("First.", "Second.", "Third.") for line in lines if word in line} == {34}
    assert any(line.startswith("  --short ") and "First." in line for line in lines)
    assert lines.index("Elsewhere:") < lines.index("Options:")


def test_commands_are_listed_in_order_with_a_line_each(mmt):
    names = [command.__name__ for command in app.COMMANDS]
    assert names == [name for name in ORDER if name in names]
    section = mmt("-h").out.split("Commands:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in section.splitlines()] == names
    assert all(len(line.split()) > 2 for line in section.splitlines())


def test_without_a_command_the_help_goes_to_stderr(mmt):
    ended = mmt()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: mmt ")


def test_colour_is_asked_for_or_not(mmt, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1m" in mmt("-h").out
    assert "\x1b[1m" in mmt("caption", "-h").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in mmt("-h").out


def test_the_version_has_one_source(mmt):
    assert mmt("--version").out == f"mmt {mmt_cli.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if "version" in project["project"].get("dynamic", []):
        assert project["tool"]["hatch"]["version"]["path"] == "mmt_cli/__init__.py"
    else:
        assert project["project"]["version"] == mmt_cli.__version__


def test_the_package_runs_as_a_module():
    ended = run("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"mmt {mmt_cli.__version__}\n", "")


def test_help_and_version_import_nothing_heavy():
    code = """
import sys
from mmt_cli.cli.app import main
for arguments in (["--help"], ["caption", "--help"], ["--version"], ["caption", "--nonsense"]):
    main(arguments)
heavy = {"torch", "numpy", "transformers", "PIL", "tokenizers", "safetensors", "rich"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    ended = run(code=code)
    assert ended.returncode == 0, ended.stderr


def test_the_package_is_lazy():
    code = """
import sys, mmt_cli
assert "torch" not in sys.modules
from mmt_cli import Caption, Captioner
assert Captioner.__module__ == "mmt_cli.captioning.captioner"
assert not hasattr(mmt_cli, "nonsense")
"""
    ended = run(code=code)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_help_is_quick():
    def seconds(*command: str) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(*MMT, "--help") <= 2.5 * seconds(sys.executable, "-c", "import typer, rich")


# How a run ends.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope"], "unknown option (--nope); see 'mmt --help'"),
        (["caption", "--fromat", "x"], "unknown option (--fromat, did you mean --format?); see 'mmt caption --help'"),
        (["caption", "-Z"], "unknown option (-Z); see 'mmt caption --help'"),
        (["caption", "--prompt"], "option '--prompt' requires an argument; see 'mmt --help'"),
        (["caption", "--quiet=3"], "option '--quiet' does not take a value; see 'mmt --help'"),
        (["captoin", "x"], "unknown command ('captoin', commands: caption"),
        (["caption\x1b\n"], "unknown command ('caption\\x1b\\n', commands: caption"),
        (["--debug"], "missing command; see 'mmt --help'"),
    ],
)
def test_errors_of_the_parser_are_one_line(mmt, arguments, line):
    ended = mmt(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.lines[-1].startswith(f"mmt: error: {line}")
    assert ended.lines[-1].endswith("--help'")
    assert len(ended.lines) == 1 or "--debug" in arguments


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.ImageError("missing", "x"), 3),
        (errors.TooManyFailuresError("x"), 4),
        (errors.ModelError("x"), 5),
        (errors.DataError("x"), 5),
        (errors.DivergedError("x"), 6),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (OSError(errno.EBADF, "Bad file descriptor"), 2),
    ],
)
def test_errors_of_the_user_are_one_line_and_their_code(error, code):
    ended = outcome.describe(error)
    assert ended.code == code
    assert ended.line.startswith("mmt: error: ")
    assert "bug" not in ended.line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "mmt: interrupted"),
        (SystemExit(143), 143, "mmt: terminated"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, None),
    ],
)
def test_ends_from_outside_are_no_errors(error, code, line):
    assert outcome.describe(error) == outcome.Outcome(code=code, line=line)


class PanicException(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError(), PanicException("x"), FileNotFoundError(errno.ENOENT, "x", "f"), SystemExit(3)],
)
def test_all_else_is_our_bug(error):
    ended = outcome.describe(error)
    assert ended.code == 1
    assert ended.line.startswith(f"mmt: error: a bug in mmt ({type(error).__name__}")
    assert ended.line.endswith("; run it again with --debug and report what it prints")


def test_a_full_disk_that_names_a_file_is_not_taken_for_stdout():
    assert outcome.describe(OSError(errno.ENOSPC, "No space left on device", "x.bin")).code == 1


@pytest.mark.parametrize("arguments", [["--debug", "caption", "--nope"], ["caption", "--debug", "--nope"]])
def test_debug_before_or_after_the_command_adds_the_traceback(mmt, arguments):
    ended = mmt(*arguments)
    assert ended.lines[0] == "Traceback (most recent call last):"
    assert ended.lines[-1].startswith("mmt: error: unknown option (--nope)")
    assert ended.code == 2


def test_debug_is_no_option_after_the_double_dash(mmt, fake):
    assert outcome.wants_debug(["caption", "--debug", "--"])
    assert not outcome.wants_debug(["caption", "--", "--debug"])
    ended = mmt("caption", "-q", "--", "--debug")
    assert ended.err == "mmt: --debug: does not exist; check the path\n"


# Streams and signals.


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["caption", "--help"]])
def test_a_closed_stdout_is_an_error(arguments):
    ended = in_shell(">&-", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("mmt: error: stdout is closed (")
    assert ended.stderr.count("\n") == 1


@NEEDS_DEV_FULL
@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_a_full_stdout_is_an_error(arguments):
    ended = in_shell(">/dev/full", *arguments)
    assert ended.returncode == 2
    assert ended.stderr == ("mmt: error: cannot write the output (No space left on device); send it somewhere else\n")


@NEEDS_DEV_FULL
def test_what_a_command_leaves_in_the_buffer_is_written_or_an_error():
    code = """
import sys
from mmt_cli.cli import app
def caption():
    sys.stdout.write("result")
app.COMMANDS = (caption,)
sys.exit(app.main(["caption"]))
"""
    command = ["sh", "-c", 'exec "$0" "$@" >/dev/full', sys.executable, "-c", code]
    assert run(code=code).stdout == "result"
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("redirection", ["2>&-", "<&-", "<&- 2>&-", pytest.param("2>/dev/full", marks=NEEDS_DEV_FULL)])
def test_other_streams_may_be_closed(redirection):
    ended = in_shell(redirection, "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"mmt {mmt_cli.__version__}\n", "")
    assert in_shell(redirection, "nonsense").returncode == 2


def test_closed_streams_are_not_handed_to_files():
    code = """
import os, sys
from mmt_cli.cli.console import prepare_streams
prepare_streams()
sys.stdout.write(str(os.open(os.devnull, os.O_RDONLY)))
"""
    command = ["sh", "-c", 'exec "$0" "$@" <&- 2>&-', sys.executable, "-c", code]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 2


def test_a_reader_that_leaves_ends_the_run_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = subprocess.run([*MMT, "--help"], env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (command.returncode, command.stderr) == (141, b"")


WAITING = """
import signal, sys, time
from mmt_cli.cli import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
def caption():
    try:
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        time.sleep(50)
    finally:
        sys.stdout.write("tidied up\\n")
app.COMMANDS = (caption,)
sys.exit(app.main(["caption"]))
"""


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGTERM, 143, "mmt: terminated\n"), (signal.SIGINT, 130, "mmt: interrupted\n")]
)
def test_signals_unwind_the_run(number, code, line):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WAITING], env=ENVIRONMENT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "tidied up\n", line)
