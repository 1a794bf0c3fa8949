"""Blocks in a stack: how they run over what fusion made, and the second stack that reads a prompt.

B batch, L sequence, P prompt tokens, D width.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmt_cli.model.block import Block, cross_block, gated_cross_block, plain_block
from mmt_cli.model.cache import KVCache
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import Context, ImageTokens
from mmt_cli.model.fused import FusedSequence
from mmt_cli.model.fusion import build_fusion
from mmt_cli.model.fusion_config import CrossConfig, GatedCrossConfig
from mmt_cli.model.gate import build_gate
from mmt_cli.model.layers import build_norm
from mmt_cli.model.mask import Visibility
from mmt_cli.model.rotary import Rotation, build_rotary
from mmt_cli.model.text import TextEmbedding

Rotary = Callable[[Tensor], Rotation] | None


def build_blocks(config: ModelConfig) -> nn.ModuleList:
    """Return the text's blocks, with cross-attention in those where the config has one."""
    return nn.ModuleList(_block(config, index) for index in range(config.text.num_layers))


def _block(config: ModelConfig, index: int) -> Block:
    fusion, block = config.fusion, config.text.block
    if not isinstance(fusion, CrossConfig | GatedCrossConfig) or index % fusion.every:
        return plain_block(block)
    width = config.memory_width
    if isinstance(fusion, CrossConfig):
        return cross_block(block, width, build_gate(fusion.gate, block.width))
    return gated_cross_block(block, width, (build_gate(fusion.gate, block.width), build_gate(fusion.gate, block.width)))


def run_blocks(
    blocks: Iterable[nn.Module], rotary: Rotary, fused: FusedSequence, cache: KVCache | None = None
) -> Tensor:
    """Return the last block's output at the readout positions, behind a cache where one is given."""
    tokens = fused.tokens
    if cache is not None and fused.text_sum_BTD is not None:
        cache.write_text_sums(fused.text_sum_BTD)
    visibility = Visibility(
        queries=tokens,
        keys=tokens if cache is None else cache.write_tokens(tokens),
        segments=fused.segments,
        grid=fused.grid,
        start=0 if cache is None else cache.place,
    )
    rotation = None
    if rotary is not None:
        assert fused.place_BLA is not None, "rotary positions without places"
        rotation = rotary(fused.place_BLA)
    x_BLD, stack = fused.x_BLD, list(blocks)
    # Training reads all: else an expert of the last block for images would have no gradient, not even zero.
    text_alone = fused.readout == fused.text != slice(0, x_BLD.shape[1]) and not torch.is_grad_enabled()
    for index, block in enumerate(stack):
        context = Context(
            visibility=visibility,
            rotation=rotation,
            image_BL=fused.image_BL,
            memory_BMD=fused.memory_BMD,
            memory_mask_B11M=fused.memory_mask_B11M,
            summary_BLS=fused.summary_BLS,
            cache=None if cache is None else cache.layers[index],
            text=fused.text if text_alone and index == len(stack) - 1 else None,
        )
        x_BLD = block(x_BLD, context)
    return x_BLD if text_alone else x_BLD[:, fused.readout]


class PromptEncoder(nn.Module):
    """Reads a prompt with the image, all of it at once (BLIP's question encoder, Florence-2's BART encoder)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.text = TextEmbedding(config.text)
        self.fusion = build_fusion(config)
        self.rotary = build_rotary(config.text.block)
        self.blocks = build_blocks(config)
        self.norm = build_norm(config.text.block) if config.text.final_norm else nn.Identity()

    def forward(self, prompt_ids_BP: Tensor, valid_BP: Tensor | None, image: ImageTokens) -> ImageTokens:
        """Return what the decoder attends to: a vector for each token of the prompt, image tokens among them.

        Args:
            prompt_ids_BP: the same number of ids in every row.
            valid_BP: True at tokens, False at padding behind them; None when nothing is padded.
            image: images that the model has seen, one a row.
        """
        fused = self.fusion(self.text, prompt_ids_BP, valid_BP, image).bidirectional()
        x_BPD = run_blocks(self.blocks, self.rotary, fused)
        return ImageTokens(x_BND=self.norm(x_BPD), grid=None, valid_BN=valid_BP)
