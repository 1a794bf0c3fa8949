"""What `mmt train --eval-only` leaves on the disk: `scores.json`, and `scores.jsonl` with a line an image."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.captioning.whole_files import replace_file
from mmt_cli.errors import OutputError
from mmt_cli.inputs.printable import printable
from mmt_cli.training.evaluate import Scores

SUMMARY, LINES = "scores.json", "scores.jsonl"


def summary(scores: Scores, *, model: str, data: Sequence[str]) -> dict[str, Any]:
    """Return what `scores.json` holds.

    Args:
        scores: of one caption an image.
        model: name and fingerprint.
        data: what was scored on, as given.
    """
    intervals = {name: list(ends) for name, ends in scores.intervals.items()}
    return {
        "model": model,
        "data": list(data),
        "images": len(scores.captions),
        "figures": dict(scores.figures),
        "intervals": intervals,
    }


def lines(scores: Scores, keys: Sequence[str]) -> Iterator[str]:
    """Yield what `scores.jsonl` holds: of each image its name, its caption and its own figures.

    Args:
        scores: of one caption an image.
        keys: what the images are called.
    """
    columns = scores.per_image.items()
    for place, (key, caption) in enumerate(zip(keys, scores.captions, strict=True)):
        figures = {name: values[place] for name, values in columns}
        yield json.dumps({"image": key, "caption": caption, **figures}) + "\n"


def write_scores(folder: Path, scores: Scores, *, model: str, data: Sequence[str], keys: Sequence[str]) -> None:
    """Write both files, each whole or not at all, into a folder that is made where there is none.

    Args:
        folder: may hold anything else.
        scores: of one caption an image.
        model: name and fingerprint.
        data: what was scored on, as given.
        keys: what the images are called.

    Raises:
        OutputError: they cannot be written.
    """
    text = json.dumps(summary(scores, model=model, data=data), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(os.fspath(folder / LINES), "".join(lines(scores, keys)).encode())
        replace_file(os.fspath(folder / SUMMARY), text.encode())
    except OSError as error:
        where, why = printable(str(folder)), error.strerror or error
        raise OutputError(f"the scores cannot be written ({where}: {why}); give another folder") from error
