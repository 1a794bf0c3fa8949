"""Quality on a data set that is not trained on.

R rows (captions or sentences), T text tokens, D width, V vocabulary, M masked places or cells, P values of a cell.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch, Row
from mmt_cli.training.data import Example
from mmt_cli.training.metrics import BleuScorer, CiderScorer
from mmt_cli.training.objectives.masked import Masked
from mmt_cli.training.objectives.tokens import IGNORED, teacher
from mmt_cli.training.vocabulary_loss import vocabulary_loss

EVAL_BATCH = 50
_MASK_SEED = 0  # the same words and cells are hidden each time


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Figures by the names that `metrics.jsonl` has, and the captions they were given for, if any."""

    figures: Mapping[str, float]
    rank: float  # what the best checkpoint is chosen by; larger is better
    captions: tuple[str, ...] = ()


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

        Returns:
            `cider` and `bleu1` to `bleu4`, each times 100.
        """
        captions: list[str] = []
        for indices in chunks(self.count):
            captions += [item[0].text for item in captioner.generate_from(see(indices))]
        cider = 100 * self.cider.score(captions)[0]
        bleu = {f"bleu{n}": 100 * value for n, value in enumerate(self.bleu.score(captions), start=1)}
        return Scores(figures={"cider": cider, **bleu}, rank=cider, captions=tuple(captions))


def score_language(model: MultimodalTransformer, rows: Sequence[Row]) -> Scores:
    """Return the `perplexity` of sentences without images: e to the mean negative log-likelihood of their tokens.

    The end token is one of them, the begin token is not.
    """
    total, count = 0.0, 0
    device = model.text.tokens.weight.device
    with inference(model):
        for indices in chunks(len(rows)):
            token_ids_RT, target_RT, valid_RT = teacher([rows[index] for index in indices], device)
            x_RTD = model.run(model.fused(token_ids_RT, None, valid_BT=valid_RT))
            targets = int((target_RT != IGNORED).sum())
            mean = vocabulary_loss(model.head, x_RTD.flatten(0, 1), target_RT.flatten(), ignore_index=IGNORED)
            total += targets * float(mean)
            count += targets
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
