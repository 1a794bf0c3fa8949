"""Fusion: how image and text become one sequence; all that differs between ways to fuse is data made there.

B batch, T text tokens, M memory (image) tokens, D width.
"""

from torch import Tensor

from mmt_cli.model.cache import TextStart
from mmt_cli.model.concat import BidirectionalConcat, CausalConcat, Concat
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.fused import FusedSequence, Fusion, no_image, words
from mmt_cli.model.fusion_config import ConcatConfig, SpliceConfig
from mmt_cli.model.mask import Segment
from mmt_cli.model.position import text_positions
from mmt_cli.model.rotary import text_places
from mmt_cli.model.splice import PrefixSplice, PromptSplice, Splice
from mmt_cli.model.text import TextEmbedding


class Cross(Fusion):
    """Causal text; the image stands beside it as the memory of cross-attention."""

    shares_images = True

    def forward(
        self, embedding: TextEmbedding, token_ids_BT: Tensor, valid_BT: Tensor | None, image: ImageTokens | None
    ) -> FusedSequence:
        """Return the text, and the image as its memory."""
        start = TextStart(step=0, rotary=0, slots=0, placeholders=0)
        position_BT = text_positions(token_ids_BT, valid_BT)
        text = words(embedding, token_ids_BT, position_BT, valid_BT, start)
        image_mean_BD = self._image_mean(no_image(embedding, token_ids_BT) if image is None else image)
        if image_mean_BD is not None:
            image_mean_BD = image_mean_BD.repeat_interleave(len(token_ids_BT) // len(image_mean_BD), dim=0)
        sum_BTD, summary_BTS = self._text_summary(text, image_mean_BD)
        whole = slice(0, token_ids_BT.shape[1])
        return FusedSequence(
            x_BLD=text.x_BTD,
            tokens=text.tokens,
            segments=(Segment(start=0, end=whole.stop, causal=True),),
            text=whole,
            readout=whole,
            start=start,
            place_BLA=text_places(self.axes, position_BT, 0) if self.axes else None,
            memory_BMD=None if image is None else image.x_BND,
            memory_mask_B11M=None if image is None or image.valid_BN is None else image.valid_BN[:, None, None],
            summary_BLS=summary_BTS,
            text_sum_BTD=sum_BTD,
            image_mean_BD=image_mean_BD,
        )


CONCATS: dict[str, type[Concat]] = {
    "prefix": Concat,
    "causal": CausalConcat,
    "bidirectional": BidirectionalConcat,
}
SPLICES: dict[str, type[Splice]] = {"prefix": PrefixSplice, "causal": Splice, "prompt": PromptSplice}


def build_fusion(config: ModelConfig) -> Fusion:
    """Return the way to fuse that the config names."""
    if isinstance(config.fusion, ConcatConfig):
        return CONCATS[config.fusion.visibility](config)
    if isinstance(config.fusion, SpliceConfig):
        return SPLICES[config.fusion.visibility](config)
    return Cross(config)
