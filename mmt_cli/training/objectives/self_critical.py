"""Self-critical sequence training: captions that score above their rivals become likelier (Rennie et al. 2017).

B images, K samples of an image, R rows (B x K), T text tokens, D width.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Caption as Written
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.model.context import ImageTokens
from mmt_cli.training.batches import Batch, Row
from mmt_cli.training.compiled import as_written
from mmt_cli.training.metrics.cider import Rarity, Vector, similarity
from mmt_cli.training.metrics.words import Ngram, ngram_counts, tokenize
from mmt_cli.training.objectives.base import Losses, See
from mmt_cli.training.objectives.caption import Caption
from mmt_cli.training.objectives.tokens import readouts
from mmt_cli.training.vocabulary_loss import vocabulary_loss

SAMPLES = 5  # captions drawn of each image
COUNTED = 20_000  # images, at equal distances in the data, whose captions tell how rare an n-gram is
CAPTION_WEIGHT = 0.1  # of the cross-entropy of the data's own captions

_END = "<end>"  # no word of a text looks so
_SEEDS = 2**62


class Consensus:
    """CIDEr-D, the end of a sentence counted as its last word.

    Without it a sentence may stop after "on a", or never, and lose nothing: the model learns to.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        """Learn how rare n-grams are from the captions of images."""
        self._rarity = Rarity([_counts(text, ended=True) for text in image] for image in captions)

    def sentence(self, text: str, *, ended: bool) -> Vector:
        """Return what is compared of a text; `ended` where it is whole."""
        return self._rarity.vector(_counts(text, ended=ended))

    def reward(self, sample: Vector, references: Sequence[Vector]) -> float:
        """Return the score, 0 to 10, of a sentence against those of its image."""
        return similarity(sample, references)[0]


class SelfCritical(Caption):
    """The log-probability of captions that the model draws, each times what it scores above the others of its image.

    The mean score of the image's other samples is what a sample is measured by (leave-one-out: Kool et al. 2019, Luo
    2020), not the greedy caption: as unbiased, less noisy, and nothing is decoded that is not learned from. Samples are
    written without dropout, from the model's distribution at a temperature; they are read again with gradients, and
    with the model's dropout, the end token included. A little cross-entropy of the data's captions holds it to their
    language.
    """

    def __init__(
        self,
        captioner: Captioner,
        see: See,
        consensus: Consensus,
        *,
        label_smoothing: float,
        samples: int = SAMPLES,
        temperature: float = 1.0,
    ) -> None:
        """Set it up.

        Args:
            captioner: writes; its model learns.
            see: images of a batch → what the text looks at.
            consensus: what samples are scored by.
            label_smoothing: of the cross-entropy, share of probability spread over all words.
            samples: drawn of each image, at least 2.
            temperature: divides the logits that are drawn from and learned. A model that learned smoothed labels
                spreads a part of its probability over all words: at 1 a draw is the worse the longer it is, and the
                first thing to be learned is to be short.
        """
        super().__init__(captioner.model, see, label_smoothing=label_smoothing)
        self.captioner = captioner
        self.consensus = consensus
        self.temperature = temperature
        plain = captioner.generation
        self.drawing = GenerationOptions(
            max_new_tokens=plain.max_new_tokens,
            max_length=plain.max_length,
            end_token_ids=plain.end_token_ids,
            temperature=temperature,
            num_captions=samples,
        )

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return `loss`; `reward`, the mean score of the samples times 100; `caption`, the cross-entropy in nats."""
        image = self.see(batch.seen[0])
        rows, reward_BK = self.draw(image, batch, generator)
        policy = self.policy_loss(image, rows, advantages(reward_BK), start=batch.start)
        # One caption an image: all five would cost as much as the samples do.
        caption = self.caption_loss(image, batch.one_caption_each(generator), generator)
        loss = policy + CAPTION_WEIGHT * caption
        return {"loss": loss, "reward": 100 * reward_BK.mean(), "caption": caption}

    def weight(self, batch: Batch) -> float:
        """Return the number of images, each with as many samples."""
        return len(batch.keys)

    def draw(self, image: ImageTokens, batch: Batch, generator: torch.Generator) -> tuple[list[Row], Tensor]:
        """Draw captions and score them.

        Args:
            image: those of the batch, seen.
            batch: its captions are what samples are scored against.
            generator: all that is drawn depends on it alone.

        Returns:
            The samples as rows, all of an image behind each other, and reward_BK, 0 to 10.
        """
        seeds = torch.randint(_SEEDS, (len(image),), generator=generator).tolist()
        references = self._references(batch)
        # Older torch keeps weights cast without gradients, and would take them again for the pass that needs some
        # (pytorch issue 65766).
        kind = self.device.type
        plain = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with as_written(self.model), inference(self.model), plain:
            drawn = self.captioner.generate_from(image, options=self.drawing, seeds=seeds)
        start = batch.rows[0][: batch.start]
        rows = [(*start, *caption.tokens) for captions in drawn for caption in captions]
        pairs = zip(drawn, references, strict=True)
        rewards = [[self._reward(caption, theirs) for caption in captions] for captions, theirs in pairs]
        return rows, torch.tensor(rewards, device=self.device)

    def _reward(self, caption: Written, references: Sequence[Vector]) -> float:
        sample = self.consensus.sentence(caption.text, ended=caption.finish_reason == "stop")
        return self.consensus.reward(sample, references)

    def policy_loss(self, image: ImageTokens, rows: Sequence[Row], advantage_BK: Tensor, *, start: int) -> Tensor:
        """Return the mean over all rows of minus a row's advantage times the sum of its words' log-probabilities.

        Args:
            image: B of them.
            rows: K an image, each with what is given before its words.
            advantage_BK: of each row.
            start: how many tokens of each row are given; they are not learned.
        """
        images, samples = advantage_BK.shape
        owner_R = torch.arange(images, device=self.device).repeat_interleave(samples)
        x_PD, target_P, row_P = readouts(self.model, image, rows, start=start, image_R=owner_R)
        mean = vocabulary_loss(
            lambda x_CD: self.model.head(x_CD) / self.temperature,
            x_PD,
            target_P,
            weight_P=advantage_BK.flatten()[row_P],
        )
        return mean * len(target_P) / len(rows)

    def _references(self, batch: Batch) -> list[list[Vector]]:
        """Return the sentences of each image, read back from the rows: those of a mirrored image are mirrored there."""
        words, end = self.captioner.author.words, self.captioner.end_id
        found: list[list[Vector]] = [[] for _ in batch.keys]
        for row, owner in zip(batch.rows, batch.seen[1].tolist(), strict=True):
            text = words.decode(row[batch.start :])
            found[owner].append(self.consensus.sentence(text, ended=row[-1] == end))
        return found


def advantages(reward_BK: Tensor) -> Tensor:
    """Return advantage_BK: each reward less the mean of the image's other ones."""
    samples = reward_BK.shape[1]
    return (reward_BK - reward_BK.mean(dim=1, keepdim=True)) * samples / (samples - 1)


def _counts(text: str, *, ended: bool) -> Counter[Ngram]:
    words = tokenize(text)
    return ngram_counts([*words, _END] if ended else words)
