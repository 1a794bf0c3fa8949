"""Quality on a data set: captions for its images, scored against its references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.model.context import ImageTokens
from mmt_cli.training.data import Example
from mmt_cli.training.metrics import BleuScorer, CiderScorer

EVAL_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Scores:
    """CIDEr and BLEU-1 to 4, each times 100, and the captions they were given for."""

    cider: float
    bleu: tuple[float, float, float, float]
    captions: tuple[str, ...]

    def to_json(self) -> dict[str, float]:
        """Return the figures by name."""
        return {"cider": self.cider} | {f"bleu{n}": value for n, value in enumerate(self.bleu, start=1)}


class Evaluator:
    """Scores a captioner on the same examples again and again."""

    def __init__(self, examples: Sequence[Example]) -> None:
        references = [example.captions for example in examples]
        self.count = len(examples)
        self.cider = CiderScorer(references)
        self.bleu = BleuScorer(references)

    def score(self, captioner: Captioner, see: Callable[[Sequence[int]], ImageTokens]) -> Scores:
        """Caption every example without a prompt, by the captioner's own defaults.

        Args:
            captioner: the model as it stands.
            see: indices of examples → what the model saw of them.
        """
        captions: list[str] = []
        for start in range(0, self.count, EVAL_BATCH):
            image = see(range(start, min(start + EVAL_BATCH, self.count)))
            captions += [item[0].text for item in captioner.generate_from(image)]
        bleu = self.bleu.score(captions)
        return Scores(
            cider=100 * self.cider.score(captions)[0],
            bleu=(100 * bleu[0], 100 * bleu[1], 100 * bleu[2], 100 * bleu[3]),
            captions=tuple(captions),
        )
