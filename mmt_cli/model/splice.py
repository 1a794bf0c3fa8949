"""Image tokens in place of placeholder tokens in the text.

B batch, T text tokens, N image tokens, A position axes, S summary (image and text, 2 D), D width.
"""

import torch
from torch import Tensor

from mmt_cli.errors import UsageError
from mmt_cli.model.cache import TextStart
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.fused import FusedSequence, Fusion, Words, no_image
from mmt_cli.model.mask import Segment, Tokens, image_tokens
from mmt_cli.model.position import text_positions
from mmt_cli.model.rotary import image_places, next_place, text_places
from mmt_cli.model.text import TextEmbedding


class Splice(Fusion):
    """Image tokens stand where placeholders were, before positions are added; each token sees those before it (LLaVA).

    A row's placeholders stand together, as many as its image has tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.placeholder_id is not None, "splice without a placeholder"
        self.placeholder_id = config.placeholder_id

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return the text with the image in it.

        Raises:
            UsageError: a row has not as many placeholders as its image has tokens, or they stand apart.
        """
        image = no_image(embedding, token_ids_BT) if image is None else image
        count, length = image.x_BND.shape[1], token_ids_BT.shape[1]
        image_BT = token_ids_BT.eq(self.placeholder_id)
        if valid_BT is not None:
            image_BT = image_BT & valid_BT  # what fills up rows may have the placeholder's id
        first_B1 = _first_placeholders(image_BT, count)
        position_BT = text_positions(token_ids_BT, valid_BT).expand(len(token_ids_BT), -1)
        tokens = Tokens(
            step_BL=self._steps(position_BT, image_BT, first_B1 + count - 1),
            place_BL=_places_in_modality(position_BT, image_BT, first_B1, image),
            image_BL=image_BT,
            valid_BL=valid_BT,
        )
        x_BTD = embedding(token_ids_BT, position_BT, (image_BT, image.x_BND))
        text = Words(x_BTD=x_BTD, tokens=tokens, position_BT=position_BT)
        image_mean_BD = self._image_mean(image)
        sum_BTD, summary_BTS = self._text_summary(text, image_mean_BD)
        grid = image.grid or (1, count)
        behind = next_place(self.axes, grid, image.extra) if self.axes and count else count
        whole = slice(0, length)
        return FusedSequence(
            x_BLD=self._weighed_apart(text, summary_BTS),
            tokens=tokens,
            segments=self._segments(length),
            text=whole,
            readout=whole,
            start=TextStart(step=0, rotary=behind - count, slots=0, placeholders=count),
            grid=image.grid,
            place_BLA=self._rotary_places(text, first_B1, image, behind) if self.axes else None,
            image_BL=image_BT if count else None,
            text_sum_BTD=sum_BTD,
            image_mean_BD=image_mean_BD,
        )

    def _steps(self, position_BT: Tensor, image_BT: Tensor, last_B1: Tensor) -> Tensor:
        return position_BT

    def _segments(self, length: int) -> tuple[Segment, ...]:
        return (Segment(start=0, end=length, causal=True),)

    def _weighed_apart(self, text: Words, summary_BTS: Tensor | None) -> Tensor:
        if self.gates is None:
            return text.x_BTD
        of_image, of_text = (self._weighed(name, text.x_BTD, summary_BTS) for name in ("image", "text"))
        return of_image.where(text.tokens.image_BL[..., None], of_text)

    def _rotary_places(self, text: Words, first_B1: Tensor, image: ImageTokens, behind: int) -> Tensor:
        """Return place_BTA: words count on, over the image as many places as it takes."""
        count, image_BT = image.x_BND.shape[1], text.tokens.image_BL
        passed_BT = (text.position_BT >= first_B1 + count) * (count - behind)
        words_BTA = text_places(self.axes, text.position_BT - passed_BT, 0)
        if not count:
            return words_BTA
        cells_NA = image_places(self.axes, image.grid or (1, count), image.extra, image_BT.device)
        cells_BTA = cells_NA[_rank(text.position_BT, first_B1, count)] + first_B1[..., None]
        return cells_BTA.where(image_BT[..., None], words_BTA)


class PrefixSplice(Splice):
    """The same with an image that sees all of itself."""

    def _steps(self, position_BT: Tensor, image_BT: Tensor, last_B1: Tensor) -> Tensor:
        return last_B1.where(image_BT, position_BT)

    def _segments(self, length: int) -> tuple[Segment, ...]:
        return ()  # each row has its image at its own place


def _first_placeholders(image_BT: Tensor, count: int) -> Tensor:
    """Return first_B1, where each row's placeholders begin."""
    first_B1 = image_BT.int().argmax(dim=1, keepdim=True)
    place_T = torch.arange(image_BT.shape[1], device=image_BT.device)
    wanted_BT = (place_T >= first_B1) & (place_T < first_B1 + count)
    wrong_B = (wanted_BT != image_BT).any(dim=1) | (image_BT.sum(dim=1) != count)
    if bool(wrong_B.any()):
        row = int(wrong_B.int().argmax())
        raise UsageError(
            f"image and placeholders do not fit (row {row}: {count} image tokens, {int(image_BT[row].sum())} "
            "placeholders, which must stand together); give as many"
        )
    return first_B1


def _rank(position_BT: Tensor, first_B1: Tensor, count: int) -> Tensor:
    """Return which of the image's tokens stands where; beside the image any."""
    return (position_BT - first_B1).clamp(0, count - 1)


def _places_in_modality(position_BT: Tensor, image_BT: Tensor, first_B1: Tensor, image: ImageTokens) -> Tensor:
    """Return place_BT: words counted without the image, cells of the image row by row."""
    count = image.x_BND.shape[1]
    words_BT = position_BT - count * (position_BT >= first_B1 + count)
    if not count:
        return words_BT
    cells_1N = image_tokens(count, image.grid, image_BT.device).place_BL
    return cells_1N[0][_rank(position_BT, first_B1, count)].where(image_BT, words_BT)
