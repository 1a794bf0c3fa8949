"""Python's search for cyclic garbage, kept out of the way of commands that are over in a second.

Importing torch and building a model make some two hundred thousand objects that live to the end. Going through them
again and again while they come, and once more as the process ends, is a quarter of the time of `import torch`.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Search for none as long as this lasts."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def end_without() -> None:
    """Search for none as this process ends, whose memory goes back to the system as a whole."""
    gc.freeze()
