"""Help pages in plain sections that fit 80 columns.

Typer's own pages draw a box round each section, which leaves too little room for help texts beside long option
names, and importing what draws them takes longer than the rest of `mmt --help`.
"""

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mmt_cli.cli.readers import OurReaders
from mmt_cli.errors import UsageError

_WIDEST_NAME = 30
_NEGATED = re.compile(r"--(\S+) / --no-\1")


def _write_sections(command: Any, context: Any, formatter: Any) -> None:
    """Write arguments and options grouped by their `rich_help_panel`, in the order they were declared."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        if getattr(param, "hidden", False):
            continue
        if param.param_type_name == "argument":
            section, row = "Arguments", (param.metavar or param.name, param.help or "")
        else:
            section, row = getattr(param, "rich_help_panel", None) or "Options", param.get_help_record(context)
            row = (_NEGATED.sub(r"--[no-]\1", row[0]), row[1])
        sections.setdefault(section, []).append(row)
    # The general ones (--quiet, --debug, --help) come last, where readers of other tools look for them.
    sections["Options"] = sections.pop("Options", [])
    # One column for all sections; a longer name has its text on the next line.
    width = min(_WIDEST_NAME, max(len(name) for rows in sections.values() for name, _ in rows))
    for name, rows in sections.items():
        if rows:
            with formatter.section(typer.style(name, bold=True)):
                formatter.write_dl([(left.ljust(width), right) for left, right in rows], col_max=_WIDEST_NAME)


class SectionedCommand(OurReaders, TyperCommand):
    """A command whose help page is in plain sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of this command."""
        _write_sections(self, ctx, formatter)


class SectionedGroup(OurReaders, TyperGroup):
    """The group of all commands: its help page lists the commands first."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that `args` begin with.

        Raises:
            UsageError: there is none of that name.
        """
        if args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise UsageError(f"unknown command ({args[0]!r}, commands: {known}); see 'mmt --help'")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one line for each command, then the options."""
        rows = [(name, command.get_short_help_str(limit=60)) for name, command in self.commands.items()]
        with formatter.section(typer.style("Commands", bold=True)):
            formatter.write_dl(rows)
        _write_sections(self, ctx, formatter)
