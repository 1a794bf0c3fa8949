"""`mmt`: puts the commands together, runs one, and turns whatever happens into an exit code and at most one line."""

import atexit
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main

from mmt_cli import __version__
from mmt_cli.cli import console, garbage, outcome
from mmt_cli.cli.bench import bench
from mmt_cli.cli.caption import caption
from mmt_cli.cli.help import SectionedCommand, SectionedGroup
from mmt_cli.cli.inspect import inspect
from mmt_cli.cli.options import Debug
from mmt_cli.cli.train import train

# One line here registers a command; `mmt --help` lists them in this order: caption, train, inspect, bench.
COMMANDS = (caption, train, inspect, bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.emit(f"mmt {__version__}\n")
        raise typer.Exit


def mmt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Say in words what an image shows, and train, inspect and time the model that does it."""


def build() -> Any:
    """Return the parser with every command registered.

    Shell completion is off: installing it edits the user's shell start-up files, each press of Tab would start a
    Python process, and it would put two options before all others in `mmt --help`.
    """
    app = typer.Typer(
        name="mmt",
        cls=SectionedGroup,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "color": console.use_colour(sys.stdout)},
    )
    app.callback()(mmt)
    for command in COMMANDS:
        app.command(cls=SectionedCommand)(command)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mmt` with these arguments (those of the process if None) and return the exit code.

    Every error a user can cause becomes one line on stderr; a traceback comes before it only with `--debug`.
    """
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        atexit.register(garbage.end_without)
    try:
        console.prepare_streams()
        outcome.raise_on_sigterm()
        code = _run(given)
        console.flush()
    except BaseException as error:
        # Everything ends here, also what is no Exception: Ctrl-C, SIGTERM, a panic in a compiled library.
        ended = outcome.describe(error)
        if outcome.wants_debug(given) and ended.line:
            traceback.print_exception(error)
        return outcome.finish(ended)
    return code


def _run(arguments: Sequence[str]) -> int:
    command = build()
    # Not through the command's own main(): that one draws boxes, and hides closed pipes and Ctrl-C behind exit 1.
    try:
        if not arguments:
            with command.make_context("mmt", [], resilient_parsing=True) as context:
                typer.echo(context.get_help(), err=True, color=console.use_colour(sys.stderr))
            return 2
        with command.make_context("mmt", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0
