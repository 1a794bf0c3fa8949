"""Captioning, and telling which caption belongs to which image (CoCa, Yu et al. 2022).

B images, R rows (captions), T text tokens, E shared width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.model.context import ImageTokens
from mmt_cli.training.batches import Batch, Row
from mmt_cli.training.objectives.base import Losses
from mmt_cli.training.objectives.caption import Caption
from mmt_cli.training.objectives.tokens import padded

CAPTION_WEIGHT, CONTRASTIVE_WEIGHT = 2.0, 1.0  # CoCa's


class CaptionContrastive(Caption):
    """The caption loss, and the contrastive loss of the batch's images with one caption each."""

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return `loss` and its parts `caption` and `contrastive`, each in nats."""
        image = self.see(batch.seen[0])
        # Another caption of the same image is no wrong one.
        rows = batch.one_caption_each(generator).rows
        contrastive = info_nce(self.similarity(image, rows))
        caption = self.caption_loss(image, batch, generator)
        loss = CAPTION_WEIGHT * caption + CONTRASTIVE_WEIGHT * contrastive
        return {"loss": loss, "caption": caption, "contrastive": contrastive}

    def weight(self, batch: Batch) -> float:
        """Return the number of images; each is told from those of its own batch alone, however many make a step."""
        return len(batch.keys)

    def similarity(self, image: ImageTokens, rows: Sequence[Row]) -> Tensor:
        """Return logits_BR: how well each image and each caption, read without any image, go together."""
        model, head = self.model, self.model.contrastive
        assert head is not None, "the model has no contrastive head"
        config = model.config
        # One token less than a row may have: nothing follows the last one here.
        words = [tuple(t for t in row if t != config.placeholder_id)[: config.text.max_length] for row in rows]
        token_ids_RT, valid_RT = padded(words, self.device)
        fused = model.fused(token_ids_RT, None, valid_BT=valid_RT)
        if not config.cacheable:
            fused = fused.bidirectional()  # as this model always sees its text; its readout was in the image
        logits_BR: Tensor = head(head.embed_image(image), head.embed_text(model.run(fused), valid_RT))
        return logits_BR


def info_nce(logits_BB: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of each image's caption among all, and of each caption's image.

    Image and caption of a pair stand at the same index (CLIP's symmetric loss; ln B where all are alike).
    """
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (functional.cross_entropy(logits_BB, target_B) + functional.cross_entropy(logits_BB.T, target_B)) / 2
