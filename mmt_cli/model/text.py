"""Text in and out: token embedding with positions, and the vocabulary head.

B batch, T text tokens, L sequence, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import TextConfig
from mmt_cli.model.dropout import Dropout
from mmt_cli.model.layers import ACTIVATIONS, build_norm
from mmt_cli.model.position import learned_positions, sinusoids


class TextEmbedding(nn.Module):
    """Token ids and their positions → vectors."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # The constructor would draw random numbers, which on the meta device imports torch's compiler: seconds.
        shape = (config.vocab_size, config.block.width)
        self.tokens = nn.Embedding(*shape, _weight=torch.zeros(shape))
        self.scale = nn.Identity() if config.embedding_scale == 1.0 else Scale(config.embedding_scale)
        self.offset = config.position_offset
        rows = config.max_length + config.position_offset
        learned = config.positions == "learned"
        self.positions = learned_positions(rows, config.block.width) if learned else None
        self.placed = PLACED[config.positions]
        self.norm = build_norm(config.block) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.block.dropout)

    def forward(
        self, token_ids_BT: Tensor, position_BT: Tensor, spliced: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return text_BTD.

        Args:
            token_ids_BT: ids of the vocabulary.
            position_BT: of each token.
            spliced: image_BT, True where an image token stands, and the vectors x_ND that stand there, row by row.
        """
        text_BTD = self.scale(self.tokens(token_ids_BT))
        if spliced is not None:
            image_BT, x_ND = spliced
            text_BTD = text_BTD.masked_scatter(image_BT[..., None], x_ND.to(text_BTD.dtype))
        text_BTD = self.placed(text_BTD, self.positions, position_BT + self.offset)
        return cast("Tensor", self.dropout(self.norm(text_BTD)))


class Scale(nn.Module):
    """A factor for all embeddings, in their dtype (Gemma's √D is rounded as the weights are)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, text_BTD: Tensor) -> Tensor:
        """Return BTD."""
        return text_BTD * torch.tensor(self.factor, dtype=text_BTD.dtype)


def _as_it_is(text_BTD: Tensor, table_PD: Tensor | None, place_BT: Tensor) -> Tensor:
    return text_BTD


def _with_learned(text_BTD: Tensor, table_PD: Tensor | None, place_BT: Tensor) -> Tensor:
    assert table_PD is not None
    return text_BTD + table_PD[place_BT]


def _with_sinusoids(text_BTD: Tensor, table_PD: Tensor | None, place_BT: Tensor) -> Tensor:
    return text_BTD + sinusoids(place_BT, text_BTD.shape[-1]).to(text_BTD.dtype)


PLACED: dict[str, Callable[[Tensor, Tensor | None, Tensor], Tensor]] = {
    "none": _as_it_is,
    "learned": _with_learned,
    "sinusoidal": _with_sinusoids,
}


class VocabularyHead(nn.Module):
    """Final norm and the map to the vocabulary, whose matrix may be the token embedding's (tied)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, vocabulary = config.block.width, config.vocab_size
        self.transform = HeadTransform(config.block) if config.head_transform else nn.Identity()
        self.norm = build_norm(config.block) if config.final_norm else nn.Identity()
        self.projection = nn.Linear(width, vocabulary, bias=config.head_bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return logits_BLV, float32 whatever the model computes in."""
        x_BLD = self.norm(self.transform(x_BLD))
        logits_BLV: Tensor = self.projection(x_BLD)
        return logits_BLV.float()


class HeadTransform(nn.Module):
    """A linear map and an activation before the head's norm (BERT, Devlin et al. 2019)."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(block.width, block.width)
        self.activation = ACTIVATIONS[block.activation]()

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return BLD."""
        return cast("Tensor", self.activation(self.linear(x_BLD)))
