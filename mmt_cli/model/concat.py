"""Image and text tokens in one sequence.

B batch, T text tokens, N image tokens, L sequence, A position axes, S summary (image and text, 2 D), D width.
"""

import dataclasses

import torch
from torch import Tensor

from mmt_cli.model.cache import TextStart
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.fused import FusedSequence, Fusion, Words, image_mean, no_image, summary, words
from mmt_cli.model.fusion_config import ConcatConfig
from mmt_cli.model.mask import Segment, Tokens, image_tokens, join
from mmt_cli.model.position import text_positions
from mmt_cli.model.rotary import image_places, next_place, text_places
from mmt_cli.model.text import TextEmbedding


class Concat(Fusion):
    """Image and text in one sequence; the text sees the image and the text before it, the image itself (GIT)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(config.fusion, ConcatConfig)
        self.image_first = config.fusion.order == "image_first"

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return one sequence, in the order of the config."""
        image = no_image(embedding, token_ids_BT) if image is None else image
        length, count = token_ids_BT.shape[1], image.x_BND.shape[1]
        axes, grid = self.axes, image.grid or (1, count)
        rotary = next_place(axes, grid, image.extra) if axes and count else 0
        start = TextStart(step=self._first_step(count), rotary=rotary, slots=count, placeholders=0)
        text = words(embedding, token_ids_BT, text_positions(token_ids_BT, valid_BT), valid_BT, start)
        image_mean_BD = self._image_mean(image)
        sum_BTD, text_summary_BTS = self._text_summary(text, image_mean_BD)
        image_summary_BNS = self._image_summary(image, text_summary_BTS)
        x_BTD = self._weighed("text", text.x_BTD, text_summary_BTS)
        x_BND = self._weighed("image", image.x_BND, image_summary_BNS)
        place_BLA = None
        if axes:
            place_1NA = image_places(axes, grid, image.extra, x_BND.device)[None]
            place_BLA = self._ordered(place_1NA, text_places(axes, text.position_BT, rotary))
        parts = (self._image_tokens(image), text.tokens)
        tokens = join(parts if self.image_first else parts[::-1])
        text_at, image_at = self._places(length, count)
        return FusedSequence(
            x_BLD=self._ordered(x_BND, x_BTD),
            tokens=tokens,
            segments=self._segments(text_at, image_at),
            text=text_at,
            readout=self._readout(text_at, image_at),
            start=start,
            grid=image.grid,
            place_BLA=place_BLA,
            image_BL=tokens.image_BL if count else None,
            text_sum_BTD=sum_BTD,
            image_mean_BD=image_mean_BD,
        )

    def _places(self, length: int, count: int) -> tuple[slice, slice]:
        """Return where text and image stand."""
        if self.image_first:
            return slice(count, count + length), slice(0, count)
        return slice(0, length), slice(length, length + count)

    def _ordered(self, image_BND: Tensor, text_BTD: Tensor) -> Tensor:
        image_BND = image_BND.expand(len(text_BTD), -1, -1)
        return torch.cat([image_BND, text_BTD] if self.image_first else [text_BTD, image_BND], dim=1)

    def _first_step(self, count: int) -> int:
        return 1

    def _image_tokens(self, image: ImageTokens) -> Tokens:
        return image_tokens(image.x_BND.shape[1], image.grid, image.x_BND.device)

    def _image_summary(self, image: ImageTokens, text_summary_BTS: Tensor | None) -> Tensor | None:
        """Return what image tokens may know: the whole image, none of the text, which comes after it."""
        if text_summary_BTS is None:
            return None
        return summary(image_mean(image)[:, None], torch.zeros_like(image.x_BND), image.x_BND)

    def _segments(self, text: slice, image: slice) -> tuple[Segment, ...]:
        parts = (
            Segment(start=image.start, end=image.stop, causal=False),
            Segment(start=text.start, end=text.stop, causal=True),
        )
        return tuple(part for part in parts if part.end > part.start)

    def _readout(self, text: slice, image: slice) -> slice:
        return text


class CausalConcat(Concat):
    """The same with an image that is read token by token, each seeing those before it."""

    def _first_step(self, count: int) -> int:
        return count

    def _image_tokens(self, image: ImageTokens) -> Tokens:
        tokens = super()._image_tokens(image)
        steps_1N = torch.arange(image.x_BND.shape[1], device=image.x_BND.device)[None]
        return dataclasses.replace(tokens, step_BL=steps_1N)

    def _image_summary(self, image: ImageTokens, text_summary_BTS: Tensor | None) -> Tensor | None:
        if text_summary_BTS is None:
            return None
        x_BND = image.x_BND
        seen_N1 = torch.arange(1, x_BND.shape[1] + 1, device=x_BND.device)[:, None]
        return summary(x_BND.float().cumsum(dim=1) / seen_N1, torch.zeros_like(x_BND), x_BND)

    def _segments(self, text: slice, image: slice) -> tuple[Segment, ...]:
        return tuple(dataclasses.replace(part, causal=True) for part in super()._segments(text, image))


class BidirectionalConcat(Concat):
    """The same with everything seeing everything, read once, at the class token that opens the image."""

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return one sequence, in the order of the config."""
        fused = super().forward(embedding, token_ids_BT, valid_BT, image)
        return dataclasses.replace(fused.bidirectional(), readout=fused.readout)

    def _text_summary(
        self, text: Words, image_mean_BD: Tensor | None, before_BD: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Let each token know the whole text."""
        sum_BTD, summary_BTS = super()._text_summary(text, image_mean_BD, before_BD)
        if summary_BTS is None:
            return None, None
        last_B = text.counted().expand(len(summary_BTS), -1).sum(dim=1) - 1
        whole_B1S = summary_BTS[torch.arange(len(last_B), device=last_B.device), last_B][:, None]
        return sum_BTD, whole_B1S.expand_as(summary_BTS)

    def _image_summary(self, image: ImageTokens, text_summary_BTS: Tensor | None) -> Tensor | None:
        return None if text_summary_BTS is None else text_summary_BTS[:, :1].expand(-1, image.x_BND.shape[1], -1)

    def _readout(self, text: slice, image: slice) -> slice:
        return slice(image.start, image.start + 1)
