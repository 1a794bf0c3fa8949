"""Captioning: each word from the image and the words before it; and sentences alone.

R rows (captions or sentences).
"""

import torch
from torch import Tensor

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch
from mmt_cli.training.objectives.base import Losses, Objective, See
from mmt_cli.training.objectives.tokens import next_token_loss


class Caption(Objective):
    """The mean cross-entropy of the captions' words."""

    def __init__(self, model: MultimodalTransformer, see: See, *, label_smoothing: float) -> None:
        super().__init__(model)
        self.see = see
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return `loss` in nats."""
        return {"loss": self.caption_loss(self.see(batch.seen[0]), batch, generator)}

    def weight(self, batch: Batch) -> float:
        """Return the number of words to learn; a single readout learns one an image."""
        return _words(batch) if self.model.config.cacheable else len(batch.keys)

    def caption_loss(self, image: ImageTokens, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the loss in nats of a batch whose images have been seen."""
        if not self.model.config.cacheable:
            # One readout a row: five captions would read the image five times to learn five words.
            batch = batch.one_caption_each(generator)
        return next_token_loss(
            self.model,
            image,
            batch.rows,
            label_smoothing=self.label_smoothing,
            generator=generator,
            start=batch.start,
            image_R=batch.seen[1],
        )


class Language(Objective):
    """The mean cross-entropy of a sentence's words, each from those before it; no image is read."""

    def __init__(self, model: MultimodalTransformer, *, label_smoothing: float) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return `loss` in nats."""
        loss = next_token_loss(self.model, None, batch.rows, label_smoothing=self.label_smoothing, generator=generator)
        return {"loss": loss}

    def weight(self, batch: Batch) -> float:
        """Return the number of words to learn."""
        return _words(batch)


def _words(batch: Batch) -> int:
    return sum(len(row) - batch.start for row in batch.rows)
