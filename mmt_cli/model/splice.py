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

    A row has as many placeholders as its image has tokens: together, or, for an image in tiles, with words between.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.placeholder_id is not None, "splice without a placeholder"
        self.placeholder_id = config.placeholder_id
        self.offset = config.text.position_offset

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return the text with the image in it.

        Raises:
            UsageError: a row has not as many placeholders as its image has tokens, or those of a whole image stand
                apart.
        """
        image = no_image(embedding, token_ids_BT) if image is None else image
        count, length = image.x_BND.shape[1], token_ids_BT.shape[1]
        image_BT = token_ids_BT.eq(self.placeholder_id)
        if valid_BT is not None:
            image_BT = image_BT & valid_BT  # what fills up rows may have the placeholder's id
        _check_placeholders(image_BT, image)
        position_BT = text_positions(token_ids_BT, valid_BT).expand(len(token_ids_BT), -1)
        tokens = Tokens(
            step_BL=self._steps(position_BT, image_BT),
            place_BL=_places_in_modality(position_BT, image_BT, image),
            image_BL=image_BT,
            valid_BL=valid_BT,
        )
        # A placeholder may lie outside the vocabulary.
        words_BT = token_ids_BT.masked_fill(image_BT, 0)
        x_ND = image.x_BND.flatten(0, 1) if image.valid_BN is None else image.x_BND[image.valid_BN]
        text = Words(x_BTD=embedding(words_BT, position_BT, (image_BT, x_ND)), tokens=tokens, position_BT=position_BT)
        image_mean_BD = self._image_mean(image)
        sum_BTD, summary_BTS = self._text_summary(text, image_mean_BD)
        behind = next_place(self.axes, image.grid or (1, count), image.extra) if self.axes > 1 and count else count
        whole = slice(0, length)
        return FusedSequence(
            x_BLD=self._weighed_apart(text, summary_BTS),
            tokens=tokens,
            segments=self._segments(length),
            text=whole,
            readout=whole,
            start=TextStart(
                step=0,
                rotary=behind - count + self.offset,
                slots=0,
                placeholders=count if image.valid_BN is None else image.valid_BN.sum(dim=1, keepdim=True),
            ),
            grid=image.grid,
            place_BLA=self._rotary_places(text, image, behind) + self.offset if self.axes else None,
            image_BL=image_BT if count else None,
            text_sum_BTD=sum_BTD,
            image_mean_BD=image_mean_BD,
        )

    def _steps(self, position_BT: Tensor, image_BT: Tensor) -> Tensor:
        return position_BT

    def _segments(self, length: int) -> tuple[Segment, ...]:
        return (Segment(start=0, end=length, causal=True),)

    def _weighed_apart(self, text: Words, summary_BTS: Tensor | None) -> Tensor:
        if self.gates is None:
            return text.x_BTD
        of_image, of_text = (self._weighed(name, text.x_BTD, summary_BTS) for name in ("image", "text"))
        return of_image.where(text.tokens.image_BL[..., None], of_text)

    def _rotary_places(self, text: Words, image: ImageTokens, behind: int) -> Tensor:
        """Return place_BTA: words count on, over the image as many places as it takes."""
        count, image_BT = image.x_BND.shape[1], text.tokens.image_BL
        if self.axes == 1 or not count:
            return text_places(self.axes, text.position_BT, 0)
        first_B1 = image_BT.int().argmax(dim=1, keepdim=True)
        passed_BT = (text.position_BT >= first_B1 + count) * (count - behind)
        words_BTA = text_places(self.axes, text.position_BT - passed_BT, 0)
        cells_NA = image_places(self.axes, image.grid or (1, count), image.extra, image_BT.device)
        cells_BTA = cells_NA[_rank(image_BT)] + first_B1[..., None]
        return cells_BTA.where(image_BT[..., None], words_BTA)


class PrefixSplice(Splice):
    """The same with an image that sees all of itself."""

    def _steps(self, position_BT: Tensor, image_BT: Tensor) -> Tensor:
        last_B1 = (position_BT * image_BT).amax(dim=1, keepdim=True)
        return last_B1.where(image_BT, position_BT)

    def _segments(self, length: int) -> tuple[Segment, ...]:
        return ()  # each row has its image at its own place


class PromptSplice(Splice):
    """The same with a prompt, image and words, that sees all of itself (PaliGemma); all that is read at once is it."""

    def _steps(self, position_BT: Tensor, image_BT: Tensor) -> Tensor:
        return torch.zeros_like(position_BT)

    def _segments(self, length: int) -> tuple[Segment, ...]:
        return (Segment(start=0, end=length, causal=False),)


def _check_placeholders(image_BT: Tensor, image: ImageTokens) -> None:
    """Raise UsageError where placeholders and image tokens do not fit each other."""
    found_B, count = image_BT.sum(dim=1), image.x_BND.shape[1]
    wrong_B = found_B != (count if image.valid_BN is None else image.valid_BN.sum(dim=1))
    together = image.grid is not None
    if together:  # as many of them as stand from the first on
        place_T = torch.arange(image_BT.shape[1], device=image_BT.device)
        first_B1 = image_BT.int().argmax(dim=1, keepdim=True)
        run_BT = (place_T >= first_B1) & (place_T < first_B1 + count)
        wrong_B = wrong_B | (run_BT != image_BT).any(dim=1)
    if bool(wrong_B.any()):
        row = int(wrong_B.int().argmax())
        wanted = count if image.valid_BN is None else int(image.valid_BN[row].sum())
        raise UsageError(
            f"image and placeholders do not fit (row {row}: {wanted} image tokens, {int(found_B[row])} "
            f"placeholders{', which must stand together' if together else ''}); give as many"
        )


def _rank(image_BT: Tensor) -> Tensor:
    """Return which of the image's tokens stands where; beside the image any."""
    return (image_BT.cumsum(dim=1) - 1).clamp_min(0)


def _places_in_modality(position_BT: Tensor, image_BT: Tensor, image: ImageTokens) -> Tensor:
    """Return place_BT: words counted without the image, cells of the image row by row."""
    count = image.x_BND.shape[1]
    words_BT = position_BT - image_BT.cumsum(dim=1)
    if not count:
        return words_BT
    cells_1N = image_tokens(count, image.grid, image_BT.device).place_BL
    return cells_1N[0][_rank(image_BT)].where(image_BT, words_BT)
