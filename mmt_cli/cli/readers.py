"""Options whose readers are ours are read by these alone.

Newer versions of typer build a pydantic type for each option on the command line, also for those that have a reader of
their own. Importing pydantic takes as long as all of `mmt --help`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Reader:
    """Stands in for typer's own conversion of one option's value."""

    read: Callable[[Any], Any]

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value as the command takes it; what comes several times as a list."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        return [self.read(item) for item in value] if several else self.read(value)


class OurReaders:
    """A command whose options typer converts no further than our readers do.

    Changes nothing in versions of typer that convert options in another way.
    """

    def get_params(self, ctx: Any) -> Any:
        """Return the options and arguments, the one for help among them."""
        params = super().get_params(ctx)  # type: ignore[misc]  # the command's, which this stands before
        for param in params:
            described = getattr(param, "type_descriptor", None)
            if described is not None and getattr(param, "_runtime_param", param) is None:
                reader = described.parameter_info.parser
                if reader is not None or described.annotation in (str, bool, list[str]):
                    param._runtime_param = _Reader(reader or (lambda value: value))
        return params
