"""A multimodal transformer on the command line and in Python: an image and a few words go in, text comes out."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmt_cli.captioning.captioner import Caption, Captioner

# Without numpy torch warns at import. Nothing here needs numpy, and a good run leaves stderr clean.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the Python face when it is first asked for, so that importing the package imports no torch."""
    if name in ("Caption", "Captioner"):
        from mmt_cli.captioning import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
