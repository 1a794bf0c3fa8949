"""The shared core: an image and token ids in, logits out. No tokenizer, no loss, no sampling.

B batch, C channels, H height, W width in pixels, T text tokens, N image tokens, L sequence, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from mmt_cli.errors import UsageError
from mmt_cli.model.cache import SLOTS, KVCache
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import Images, ImageTokens
from mmt_cli.model.contrastive import ContrastiveHead
from mmt_cli.model.fused import FusedSequence
from mmt_cli.model.fusion import build_fusion
from mmt_cli.model.gate import Gate
from mmt_cli.model.rotary import build_rotary
from mmt_cli.model.stack import PromptEncoder, build_blocks, run_blocks
from mmt_cli.model.text import TextEmbedding, VocabularyHead
from mmt_cli.model.vision import ConvolutionPatches, build_connector, build_tower

_TILES_AT_ONCE = 16  # of 512 pixels a side: half a gigabyte inside the tower


class MultimodalTransformer(nn.Module):
    """vision tower → connector → fusion with the text → blocks → logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.vision = build_tower(config.vision)
        self.connector = build_connector(config)
        self.text = TextEmbedding(text)
        self.prompt_encoder = None if config.prompt_encoder is None else PromptEncoder(config.of_prompt_encoder)
        self.fusion = build_fusion(config)
        self.rotary = build_rotary(text.block)
        self.blocks = build_blocks(config)
        self.head = VocabularyHead(text)
        space = config.contrastive_width
        self.contrastive = None if space is None else ContrastiveHead(width=text.block.width, shared_width=space)
        self.tie()

    def tie(self) -> None:
        """Let shared weights be one tensor: a tied head's, and the tokens that both stacks read."""
        if self.config.text.head == "tied":
            self.head.projection.weight = self.text.tokens.weight
        if self.prompt_encoder is not None and self.config.shares_tokens:
            self.prompt_encoder.text.tokens.weight = self.text.tokens.weight

    def own_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: parameters and buffers by name, shared ones under their first name alone."""
        state = dict(self.state_dict(keep_vars=True))
        shared = {"head.projection.weight": self.config.text.head == "tied"}
        shared["prompt_encoder.text.tokens.weight"] = self.config.shares_tokens
        return {name: tensor for name, tensor in state.items() if not shared.get(name)}

    def forward(
        self,
        token_ids_BT: Tensor,
        pixels_BCHW: Tensor | Images,
        prompt_ids_BP: Tensor | None = None,
        *,
        valid_BT: Tensor | None = None,
        prompt_valid_BP: Tensor | None = None,
    ) -> Tensor:
        """Return the next-token logits, float32, before any sampling.

        Args:
            token_ids_BT: token ids; the same number T in every row.
            pixels_BCHW: preprocessed images, one a row; or images in tiles.
            prompt_ids_BP: for models with a prompt encoder what it reads; None for all others.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.
            prompt_valid_BP: the same for the prompt encoder.

        Returns:
            logits_BTV, one row per text token; with bidirectional fusion B x 1 x V, the token after the whole text.
        """
        image = self.see(pixels_BCHW)
        if prompt_ids_BP is not None:
            image = self.ask(prompt_ids_BP, image, valid_BP=prompt_valid_BP)
        return self.read(token_ids_BT, image, valid_BT=valid_BT)

    def see(self, pixels_BCHW: Tensor | Images) -> ImageTokens:
        """Return the image tokens that the text will look at.

        Pixels may have other sides than the config's `image_size`: positions are resampled to their grid.

        Raises:
            UsageError: the pixels have other channels than the model reads, or sides that it cannot read.
        """
        if isinstance(pixels_BCHW, Images):
            tiles = [self.see(part_NCHW) for part_NCHW in torch.split(pixels_BCHW.tiles_NCHW, _TILES_AT_ONCE)]
            all_tiles = ImageTokens(x_BND=torch.cat([part.x_BND for part in tiles]), grid=None)
            return all_tiles.gathered(pixels_BCHW.count_B)
        found, wanted = pixels_BCHW.shape[1], self.config.vision.channels
        if found != wanted:
            raise UsageError(f"pixels and model do not fit (found {found} channels, the model reads {wanted}); convert")
        self.config.image_shape(*pixels_BCHW.shape[2:])
        image: ImageTokens = self.connector(self.vision(pixels_BCHW))
        return image

    def ask(self, prompt_ids_BP: Tensor, image: ImageTokens, *, valid_BP: Tensor | None = None) -> ImageTokens:
        """Return what the text will look at once the prompt encoder has read prompt and image."""
        assert self.prompt_encoder is not None, "a prompt for a model without a prompt encoder"
        memory: ImageTokens = self.prompt_encoder(prompt_ids_BP, valid_BP, image)
        return memory

    def read(self, token_ids_BT: Tensor, image: ImageTokens | None, *, valid_BT: Tensor | None = None) -> Tensor:
        """Return the logits as `forward` does, for images that `see` has seen; without an image for the text alone."""
        logits_BTV: Tensor = self.head(self.run(self.fused(token_ids_BT, image, valid_BT)))
        return logits_BTV

    def prefill(
        self, token_ids_BT: Tensor, image: ImageTokens, *, valid_BT: Tensor | None = None, capacity: int
    ) -> tuple[Tensor, KVCache]:
        """Read image and prompt, keeping keys and values.

        Args:
            token_ids_BT: the prompts, T at least 1.
            image: images that `see` has seen.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.
            capacity: text tokens in all, prompt included, that the cache shall hold.

        Returns:
            logits_BV after each prompt's last token, and the cache for `step`.
        """
        assert self.config.cacheable, "a bidirectional readout has nothing to cache"
        batch, length = token_ids_BT.shape
        fused = self.fused(token_ids_BT, image, valid_BT)
        count_B = torch.full((batch,), length, device=token_ids_BT.device) if valid_BT is None else valid_BT.sum(dim=1)
        cache = KVCache(
            num_layers=len(self.blocks),
            capacity=capacity + fused.start.slots,
            position_B=count_B,
            start=fused.start,
            slots=SLOTS[self.config.text.cache],
        )
        cache.image_mean_BD = fused.image_mean_BD
        cache.memory_mask_G11M = fused.memory_mask_B11M
        x_BTD = self.run(fused, cache)
        cache.length = fused.x_BLD.shape[1]
        last_B1D = x_BTD[torch.arange(batch, device=x_BTD.device), count_B - 1][:, None]
        logits_B1V: Tensor = self.head(last_B1D)
        return logits_B1V[:, 0], cache

    def step(self, token_ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Read more text behind the cache; the caller then keeps it with `cache.advance(T)`.

        Returns:
            logits_BV after the last token of each row.
        """
        fused = self.fusion.continued(self.text, token_ids_BT, cache)
        logits_B1V: Tensor = self.head(self.run(fused, cache)[:, -1:])
        return logits_B1V[:, 0]

    def fused(self, token_ids_BT: Tensor, image: ImageTokens | None, valid_BT: Tensor | None = None) -> FusedSequence:
        """Return text and image as the blocks read them, from the text's start.

        Args:
            token_ids_BT: the same number of ids in every row.
            image: one a row, or one for every so many rows that follow each other; None: the text stands alone.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.
        """
        if image is not None and not self.fusion.shares_images:
            image = image.repeated(len(token_ids_BT) // len(image))
        fused: FusedSequence = self.fusion(self.text, token_ids_BT, valid_BT, image)
        return fused

    def run(self, fused: FusedSequence, cache: KVCache | None = None) -> Tensor:
        """Return the last block's output at the readout positions, behind a cache where one is given."""
        return run_blocks(self.blocks, self.rotary, fused, cache)


def initialise(model: MultimodalTransformer) -> None:
    """Fill the weights for training.

    Xavier for matrices, small normal for embeddings, positions and class token; gates start closed, and what starts as
    an identity (norms, layer scale) is left as it was built.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("tokens.weight", "positions", "class_token")):
            nn.init.normal_(parameter, std=0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | ConvolutionPatches) and name != "head.projection":
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, Gate):
            module.reset()
    if model.config.text.head == "own":
        nn.init.normal_(model.head.projection.weight, std=0.02)
    if model.head.projection.bias is not None:
        nn.init.zeros_(model.head.projection.bias)
