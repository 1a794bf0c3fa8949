"""What fusion makes of image and text, and what all ways to fuse share.

B batch, T text tokens, L sequence, M memory (image) tokens, A position axes, S summary (image and text, 2 D), D width.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmt_cli.model.cache import KVCache, TextStart
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.gate import build_gate, running_sum
from mmt_cli.model.mask import Segment, Tokens
from mmt_cli.model.rotary import text_places
from mmt_cli.model.text import TextEmbedding


@dataclass(frozen=True, kw_only=True)
class FusedSequence:
    """What the blocks read: the sequence, who sees whom, and the image beside it for cross-attention."""

    x_BLD: Tensor
    tokens: Tokens
    segments: tuple[Segment, ...]  # of the sequence, in the order of its steps; empty where rows differ
    text: slice  # positions of the text
    readout: slice  # the positions whose logits the model returns
    start: TextStart
    grid: tuple[int, int] | None = None
    place_BLA: Tensor | None = None  # for rotary positions
    image_BL: Tensor | None = None  # True at image tokens, for experts; None where all are text
    memory_BMD: Tensor | None = None
    memory_mask_B11M: Tensor | None = None  # False at padding of the memory; None where there is none
    summary_BLS: Tensor | None = None  # for dynamic gates: means of the image and of the text that a token may see
    text_sum_BTD: Tensor | None = None
    image_mean_BD: Tensor | None = None

    def bidirectional(self) -> "FusedSequence":
        """Return the same with everything seeing everything but padding, read at every position of the text."""
        tokens = dataclasses.replace(self.tokens, step_BL=torch.zeros_like(self.tokens.step_BL))
        segments = (Segment(start=0, end=self.x_BLD.shape[1], causal=False),)
        return dataclasses.replace(self, tokens=tokens, segments=segments, readout=self.text)


@dataclass(frozen=True, kw_only=True)
class Words:
    """Text tokens with their places."""

    x_BTD: Tensor
    tokens: Tokens
    position_BT: Tensor

    def counted(self) -> Tensor:
        """Return counted_BT: True at words, False at padding and at image tokens."""
        words_BT = ~self.tokens.image_BL
        return words_BT if self.tokens.valid_BL is None else words_BT & self.tokens.valid_BL


class Fusion(nn.Module):
    """What all ways to fuse share: text goes on behind a cache, positions of rotary attention, gates."""

    shares_images = False  # whether an image can be given once for all rows that have it

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        fusion, width = config.fusion, config.text.block.width
        self.axes = {"1d": 1, "multimodal": 3}.get(config.text.block.rope, 0)
        self.needs_summary = fusion.gate == "dynamic"
        gated = fusion.gate != "none" and config.joint
        self.gates = nn.ModuleDict({n: build_gate(fusion.gate, width) for n in ("image", "text")}) if gated else None

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return text and image as the blocks read them, from the text's start.

        Args:
            embedding: of the text.
            token_ids_BT: the same number of ids in every row.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.
            image: one a row, or fewer if `shares_images`; None for the text alone.
        """
        raise NotImplementedError

    def continued(self, embedding: TextEmbedding, token_ids_BT: Tensor, cache: KVCache) -> FusedSequence:
        """Return more text behind what a cache holds already."""
        start, length = cache.start, token_ids_BT.shape[1]
        position_BT = cache.position_B[:, None] + torch.arange(length, device=token_ids_BT.device)
        text = words(embedding, token_ids_BT, position_BT, None, start)
        sum_BTD, summary_BTS = self._text_summary(text, cache.image_mean_BD, cache.text_so_far())
        return FusedSequence(
            x_BLD=self._weighed("text", text.x_BTD, summary_BTS),
            tokens=text.tokens,
            segments=(Segment(start=0, end=length, causal=True),),
            text=slice(0, length),
            readout=slice(0, length),
            start=start,
            place_BLA=text_places(self.axes, position_BT, start.rotary) if self.axes else None,
            memory_mask_B11M=cache.memory_mask_G11M,
            summary_BLS=summary_BTS,
            text_sum_BTD=sum_BTD,
        )

    def _image_mean(self, image: ImageTokens) -> Tensor | None:
        return image_mean(image) if self.needs_summary else None

    def _text_summary(
        self, text: Words, image_mean_BD: Tensor | None, before_BD: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the running sums of the text, and summary_BTS for each of its tokens."""
        if not self.needs_summary:
            return None, None
        assert image_mean_BD is not None, "a summary without the image's mean"
        counted_BT = text.counted()
        sum_BTD = running_sum(text.x_BTD, counted_BT, before_BD)
        count_BT = counted_BT.cumsum(dim=1)
        if before_BD is not None:
            count_BT = count_BT + text.tokens.place_BL[:, :1]
        text_mean_BTD = sum_BTD / count_BT.clamp_min(1)[..., None]
        return sum_BTD, summary(image_mean_BD[:, None], text_mean_BTD, text.x_BTD)

    def _weighed(self, modality: str, x_BLD: Tensor, summary_BLS: Tensor | None) -> Tensor:
        """Return tokens of one modality behind its gate: x (1 + gate)."""
        if self.gates is None:
            return x_BLD
        part_BLD: Tensor = self.gates[modality](x_BLD, x_BLD, summary_BLS)
        return x_BLD + part_BLD


def words(
    embedding: TextEmbedding, token_ids_BT: Tensor, position_BT: Tensor, valid_BT: Tensor | None, start: TextStart
) -> Words:
    """Return text that no image interrupts."""
    tokens = Tokens(
        step_BL=position_BT + start.step,
        place_BL=position_BT - start.placeholders,
        image_BL=torch.zeros_like(position_BT, dtype=torch.bool),
        valid_BL=valid_BT,
    )
    x_BTD = embedding(token_ids_BT, position_BT)
    return Words(x_BTD=x_BTD, tokens=tokens, position_BT=position_BT)


def no_image(embedding: TextEmbedding, token_ids_BT: Tensor) -> ImageTokens:
    """Return images without a token."""
    return ImageTokens(x_BND=embedding.tokens(token_ids_BT[:, :0]), grid=None)


def image_mean(image: ImageTokens) -> Tensor:
    """Return mean_BD of the image's tokens, float32; zeros where there is none."""
    return image.x_BND.float().sum(dim=1) / max(image.x_BND.shape[1], 1)


def summary(image_BLD: Tensor, text_BLD: Tensor, like_BLD: Tensor) -> Tensor:
    """Return summary_BLS, in the dtype and with the length of the tokens that are to know it."""
    shape = like_BLD.shape
    return torch.cat([image_BLD.expand(shape), text_BLD.expand(shape)], dim=-1).to(like_BLD.dtype)
