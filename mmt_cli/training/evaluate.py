"""Quality on a data set that is not trained on.

R rows (captions or sentences), T text tokens, D width, V vocabulary, M masked places or cells, P values of a cell.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.recording import forget_recordings
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch, Row
from mmt_cli.training.bootstrap import interval, resampled
from mmt_cli.training.examples import Example
from mmt_cli.training.metrics.bleu import BleuScorer
from mmt_cli.training.metrics.cider import CiderScorer
from mmt_cli.training.metrics.rouge import RougeScorer
from mmt_cli.training.metrics.scorer import Scorer
from mmt_cli.training.objectives.masked import Masked
from mmt_cli.training.objectives.tokens import readouts
from mmt_cli.training.vocabulary_loss import vocabulary_loss

EVAL_BATCH = 50
TITLES = {  # of figures, as papers have them; what they call CIDEr is nearly always CIDEr-D
    "cider": "CIDEr-D",
    "cider_plain": "CIDEr",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
}
SAMPLES = 3  # captions shown and kept of each evaluation
_MASK_SEED = 0  # the same words and cells are hidden each time


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Figures by the names that `metrics.jsonl` has, and the captions they were given for, if any.

    Attributes:
        figures: of the whole data set.
        rank: what the best checkpoint is chosen by; larger is better.
        keys: what the images are called, where captions are scored.
        captions: one an image.
        intervals: where captions are scored, between which values each figure would lie for 95 % of data sets like
            this one (bootstrap over its images; references, and how rare their words are, stay as they are).
        per_image: the same figures of each image by itself.
    """

    figures: Mapping[str, float]
    rank: float
    keys: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_image: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def samples(self) -> dict[str, str]:
        """Captions of a few images by their names, the same images each time."""
        places = range(0, len(self.keys), max(1, len(self.keys) // SAMPLES))[:SAMPLES]
        return {self.keys[place]: self.captions[place] for place in places}

    @property
    def ends(self) -> dict[str, list[float]]:
        """The intervals as JSON holds them."""
        return {name: list(ends) for name, ends in self.intervals.items()}


class Evaluator:
    """Scores a captioner on the same examples again and again."""

    def __init__(self, examples: Sequence[Example]) -> None:
        keys, references = [], []
        for example in examples:
            keys.append(example.key)
            references.append(example.captions)
        self.keys, self.count = tuple(keys), len(keys)
        self.scorers: tuple[Scorer, ...] = (CiderScorer(references), BleuScorer(references), RougeScorer(references))

    def score(self, captioner: Captioner, see: Callable[[Sequence[int]], ImageTokens]) -> Scores:
        """Caption every example without a prompt, by the captioner's own defaults.

        Args:
            captioner: the model as it stands.
            see: indices of examples → what the model saw of them.

        Returns:
            `cider` and `cider_plain`, `bleu1` to `bleu4` and `rouge_l`, each times 100.
        """
        captions: list[str] = []
        for indices in chunks(self.count):
            captions += [item[0].text for item in captioner.generate_from(see(indices))]
        forget_recordings(captioner.model)  # training wants the memory, and the weights may lie elsewhere next time
        return self.score_captions(captions)

    def score_captions(self, captions: Sequence[str]) -> Scores:
        """Return the same figures for one caption an example, whoever wrote them."""
        figures: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        per_image: dict[str, tuple[float, ...]] = {}
        for scorer in self.scorers:
            rows = scorer.rows(captions)
            total = [math.fsum(column) for column in zip(*rows, strict=True)]
            drawn = resampled(torch.tensor(rows, dtype=torch.float64)).tolist()
            figures |= {name: value for name, [value] in _columns(scorer, [total]).items()}
            intervals |= {name: interval(values) for name, values in _columns(scorer, drawn).items()}
            per_image |= _columns(scorer, rows)
        return Scores(
            figures=figures,
            rank=figures["cider"],
            keys=self.keys,
            captions=tuple(captions),
            intervals=intervals,
            per_image=per_image,
        )


def score_language(model: MultimodalTransformer, rows: Sequence[Row]) -> Scores:
    """Return the `perplexity` of sentences without images: e to the mean negative log-likelihood of their tokens.

    The end token is one of them, the begin token is not.
    """
    total, count = 0.0, 0
    with inference(model):
        for indices in chunks(len(rows)):
            x_PD, target_P, _ = readouts(model, None, [rows[index] for index in indices])
            total += len(target_P) * float(vocabulary_loss(model.head, x_PD, target_P))
            count += len(target_P)
    nats = total / count
    perplexity = float(torch.tensor(nats, dtype=torch.float64).exp())  # infinite where math.exp would raise
    return Scores(figures={"perplexity": perplexity}, rank=-nats)


def score_masked(objective: Masked, batches: Iterable[Batch]) -> Scores:
    """Return how well hidden words and cells are found again, the same ones at each call.

    Returns:
        `accuracy`, the percentage of hidden words that are the likeliest; `masked_text`, their mean negative
        log-likelihood in nats; `masked_image`, the mean square of deviations; `loss`, the sum of both.
    """
    generator = torch.Generator().manual_seed(_MASK_SEED)
    nats = squares = 0.0
    hits = words = values = 0
    with inference(objective.model):
        for batch in batches:
            logits_MV, target_M = objective.words(batch, generator)
            nats += float(functional.cross_entropy(logits_MV, target_M, reduction="sum"))
            hits += int((logits_MV.argmax(dim=-1) == target_M).sum())
            words += len(target_M)
            predicted_MP, target_MP = objective.cells(batch, generator)
            squares += float(functional.mse_loss(predicted_MP, target_MP, reduction="sum"))
            values += target_MP.numel()
    text, image = nats / words, squares / values
    figures = {"loss": text + image, "masked_text": text, "masked_image": image, "accuracy": 100 * hits / words}
    return Scores(figures=figures, rank=-figures["loss"])


def chunks(count: int) -> Iterable[range]:
    """Return the indices below `count`, some at a time."""
    return (range(start, min(start + EVAL_BATCH, count)) for start in range(0, count, EVAL_BATCH))


def _columns(scorer: Scorer, sums: Iterable[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Return the values of each figure, times 100, for each of these sums of rows."""
    figures = (tuple(100 * figure for figure in scorer.figures(total)) for total in sums)
    return dict(zip(scorer.names, zip(*figures, strict=True), strict=True))
