"""Text in and out: token embedding with positions, and the vocabulary head.

B batch, T text tokens, L sequence, D width, V vocabulary.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.config import TextConfig
from mmt_cli.model.layers import build_norm
from mmt_cli.model.position import learned_positions


class TextEmbedding(nn.Module):
    """Token ids and their positions → vectors."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # The constructor would draw random numbers, which on the meta device imports torch's compiler: seconds.
        shape = (config.vocab_size, config.block.width)
        self.tokens = nn.Embedding(*shape, _weight=torch.zeros(shape))
        learned = config.positions == "learned"
        self.positions = learned_positions(config.max_length, config.block.width) if learned else None
        self.dropout = nn.Dropout(config.block.dropout)

    def forward(
        self, token_ids_BT: Tensor, position_BT: Tensor, spliced: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return text_BTD.

        Args:
            token_ids_BT: ids of the vocabulary.
            position_BT: of each token.
            spliced: image_BT, True where an image token stands, and the vectors x_BND that stand there, in order.
        """
        text_BTD = self.tokens(token_ids_BT)
        if spliced is not None:
            image_BT, x_BND = spliced
            text_BTD = text_BTD.masked_scatter(image_BT[..., None], x_BND.to(text_BTD.dtype))
        if self.positions is not None:
            text_BTD = text_BTD + self.positions[position_BT]
        return cast("Tensor", self.dropout(text_BTD))


class VocabularyHead(nn.Module):
    """Final norm and the map to the vocabulary, whose matrix may be the token embedding's (tied)."""

    def __init__(self, config: TextConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        width, vocabulary = config.block.width, config.vocab_size
        self.norm = build_norm(config.block) if config.final_norm else nn.Identity()
        self.projection = nn.Linear(width, vocabulary, bias=config.head_bias)
        if config.head == "tied":
            self.projection.weight = tokens.weight

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return logits_BLV, float32 whatever the model computes in."""
        return functional.linear(self.norm(x_BLD), self.projection.weight, self.projection.bias).float()
