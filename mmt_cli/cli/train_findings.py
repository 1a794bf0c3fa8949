"""What is wrong with a data set, shown on stderr a line a problem."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmt_cli.cli import console

if TYPE_CHECKING:
    from mmt_cli.training.findings import Findings


@contextmanager
def problems_listed() -> Iterator[None]:
    """Show the problems of a data set that ends the run, where there are more than its error names."""
    from mmt_cli.training.findings import BrokenDataError

    try:
        yield
    except BrokenDataError as error:
        if error.findings.problems > 1:
            _list(error.findings)
        raise


def show_left_out(findings: "Findings", *, quiet: bool) -> None:
    """Show what the run goes on without."""
    if not quiet:
        _list(findings)
        if findings.left_out_line:
            console.note(f"mmt: {findings.left_out_line}")


def _list(findings: "Findings") -> None:
    for line in findings.lines:
        console.note(f"mmt: {line}")
