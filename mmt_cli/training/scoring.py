"""A trained model scored on a data set as it is: `mmt train --eval-only`."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DataError, ImageError
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import Evaluator
from mmt_cli.training.examples import Example
from mmt_cli.training.findings import Findings
from mmt_cli.training.options import ScoreOptions


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Figures by the names that `metrics.jsonl` has, of a model on so many images."""

    model: str  # name and fingerprint
    count: int
    figures: Mapping[str, float]
    findings: Findings  # of a look through the data


def score(options: ScoreOptions) -> Scored:
    """Caption every image as `mmt caption` does by default, tiles included, and score the captions.

    Raises:
        ModelError: the model cannot be loaded, or has no tokenizer.
        DataError: the data cannot be read.
    """
    findings = Findings(options.max_errors)
    examples = open_dataset(options.val, images=options.images, split="val", findings=findings)
    captioner = Captioner.load(options.model, device=options.device, dtype=options.dtype, tokenizer=options.tokenizer)
    captioner.encode_prompt(None)  # a model without a tokenizer fails here, before it writes the first caption
    captions: list[str] = []
    for start in range(0, len(examples), options.batch_size):
        chosen = examples[start : start + options.batch_size]
        captions += [best[0].text for best in captioner.generate([_picture(captioner, example) for example in chosen])]
    scores = Evaluator(examples).score_captions(captions)
    return Scored(model=captioner.fingerprint(), count=len(captions), figures=scores.figures, findings=findings)


def _picture(captioner: Captioner, example: Example) -> Picture:
    try:
        return captioner.read(example.read())
    except ImageError as error:
        what = f"{example.key}, {error}"
        raise DataError(f"an image of the data set cannot be read ({what}); mend or remove it") from error
