"""What a scored model leaves on the disk: `scores.json`, and `scores.jsonl` with a line an image."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.captioning.whole_files import replace_file
from mmt_cli.training.evaluate import Scores

SUMMARY, LINES = "scores.json", "scores.jsonl"


def summary(scores: Scores, *, model: str, data: Sequence[str]) -> dict[str, Any]:
    """Return what `scores.json` holds.

    Args:
        scores: of one caption an image.
        model: name and fingerprint.
        data: what was scored on, as given.
    """
    return {
        "model": model,
        "data": list(data),
        "images": len(scores.captions),
        "figures": dict(scores.figures),
        "intervals": scores.ends,
    }


def write_scores(folder: Path, scores: Scores, *, model: str, data: Sequence[str]) -> None:
    """Write both files, each whole or not at all, into a folder that is made where there is none.

    Args:
        folder: may hold anything else.
        scores: of one caption an image.
        model: name and fingerprint.
        data: what was scored on, as given.

    Raises:
        OSError: they cannot be written.
    """
    text = json.dumps(summary(scores, model=model, data=data), indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(os.fspath(folder / LINES), "".join(_lines(scores)).encode())
    replace_file(os.fspath(folder / SUMMARY), text.encode())


def _lines(scores: Scores) -> Iterator[str]:
    """Yield what `scores.jsonl` holds: of each image its name, its caption and its own figures."""
    for place, (key, caption) in enumerate(zip(scores.keys, scores.captions, strict=True)):
        figures = {name: values[place] for name, values in scores.per_image.items()}
        yield json.dumps({"image": key, "caption": caption, **figures}) + "\n"
