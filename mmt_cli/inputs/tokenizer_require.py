"""The one way in which a tokenizer's files are refused."""

from mmt_cli.errors import shown


def require(holds: bool, what: str, found: object) -> None:
    """Raise a ValueError that names what was found, unless the condition holds."""
    if not holds:
        raise ValueError(f"{what}: {shown(found)}")
