"""Text that comes from outside, told from that of a template."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UserText:
    """A piece of a template that comes from outside: special tokens written in it are plain text."""

    text: str
