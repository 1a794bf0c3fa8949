"""A trained model scored on a data set as it is: `mmt train --eval-only`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DataError, ImageError, OutputError
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.printable import printable
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import Evaluator, Scores
from mmt_cli.training.examples import Example
from mmt_cli.training.findings import Findings
from mmt_cli.training.options import ScoreOptions
from mmt_cli.training.score_files import write_scores


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model's captions of a data set are worth."""

    model: str  # name and fingerprint
    scores: Scores
    findings: Findings  # of a look through the data


def score(options: ScoreOptions, progress: Callable[[int, int], None] = lambda done, total: None) -> Scored:
    """Caption every image as `mmt caption` does by default, tiles included, and score the captions.

    Args:
        options: of the run; the folder that they name is made, and holds nothing yet.
        progress: is told after each batch how many images of how many are captioned.

    Raises:
        ModelError: the model cannot be loaded, or has no tokenizer.
        DataError: the data cannot be read.
        OutputError: the folder cannot be written to.
    """
    findings = Findings(options.max_errors)
    examples = open_dataset(options.val, images=options.images, split="val", findings=findings)
    captioner = Captioner.load(options.model, device=options.device, dtype=options.dtype, tokenizer=options.tokenizer)
    captioner.encode_prompt(None)  # a model without a tokenizer fails here, before it writes the first caption
    if options.out is not None:
        _make(options.out)
    captions: list[str] = []
    for start in range(0, len(examples), options.batch_size):
        chosen = examples[start : start + options.batch_size]
        captions += [best[0].text for best in captioner.generate([_picture(captioner, example) for example in chosen])]
        progress(len(captions), len(examples))
    scores = Evaluator(examples).score_captions(captions)
    return Scored(model=captioner.fingerprint(), scores=scores, findings=findings)


def save(scored: Scored, options: ScoreOptions) -> None:
    """Write the scores of the whole and of each image into the folder that the options name, if they name one.

    Raises:
        OutputError: they cannot be written.
    """
    if options.out is not None:
        try:
            write_scores(options.out, scored.scores, model=scored.model, data=options.val)
        except OSError as error:
            raise _unwritable(options.out, error.strerror or str(error)) from error


def _make(folder: Path) -> None:
    """Make the folder before an hour of captioning shows that it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "Permission denied")


def _unwritable(folder: Path, why: str) -> OutputError:
    where = printable(str(folder))
    return OutputError(f"the scores cannot be written (--out {where}, {why}); give another folder")


def _picture(captioner: Captioner, example: Example) -> Picture:
    try:
        return captioner.read(example.read())
    except ImageError as error:
        what = f"{example.key}, {error}"
        raise DataError(f"an image of the data set cannot be read ({what}); mend or remove it") from error
