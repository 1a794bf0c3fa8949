"""The shared core: an image and token ids in, logits out. No tokenizer, no loss, no sampling.

B batch, C channels, H height, W width in pixels, T text tokens, N image tokens, L sequence, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from mmt_cli.errors import UsageError
from mmt_cli.model.attention import Context
from mmt_cli.model.block import Block
from mmt_cli.model.cache import KVCache
from mmt_cli.model.config import CrossConfig, ModelConfig
from mmt_cli.model.fusion import FusedSequence, build_fusion, continued
from mmt_cli.model.mask import visibility_mask
from mmt_cli.model.position import text_positions
from mmt_cli.model.text import TextEmbedding, VocabularyHead
from mmt_cli.model.vision import Connector, build_tower


class MultimodalTransformer(nn.Module):
    """vision tower → connector → fusion with the text → blocks → logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text, connector = config.text, config.connector
        self.vision = build_tower(config.vision)
        self.connector: nn.Module = nn.Identity()
        if connector is not None:
            sizes = {"tower_width": config.vision.width, "num_tokens": config.vision.num_tokens}
            self.connector = Connector(connector, **sizes)
        self.text = TextEmbedding(text)
        self.fuse = build_fusion(config.fusion)
        memory_width = config.memory_width if isinstance(config.fusion, CrossConfig) else None
        self.blocks = nn.ModuleList(Block(text.block, memory_width) for _ in range(text.num_layers))
        self.head = VocabularyHead(text, self.text.tokens)

    def forward(self, token_ids_BT: Tensor, pixels_BCHW: Tensor, *, valid_BT: Tensor | None = None) -> Tensor:
        """Return the next-token logits, float32, before any sampling.

        Args:
            token_ids_BT: token ids; the same number T in every row.
            pixels_BCHW: preprocessed images, one a row.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.

        Returns:
            logits_BTV, one row per text token; with bidirectional fusion B x 1 x V, the token after the whole text.
        """
        return self.read(token_ids_BT, self.see(pixels_BCHW), valid_BT=valid_BT)

    def see(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the image tokens that the text will look at, image_BND.

        Raises:
            UsageError: the pixels are of another size than the model reads; some would go unseen otherwise.
        """
        vision, found = self.config.vision, list(pixels_BCHW.shape[1:])
        wanted = [vision.channels, vision.image_size, vision.image_size]
        if found != wanted:
            raise UsageError(f"pixels and model do not fit (found {found}, the model reads {wanted}); resize them")
        image_BND: Tensor = self.connector(self.vision(pixels_BCHW))
        return image_BND

    def read(self, token_ids_BT: Tensor, image_BND: Tensor, *, valid_BT: Tensor | None = None) -> Tensor:
        """Return the logits as `forward` does, for images that `see` has seen."""
        logits_BTV: Tensor = self.head(self._run(self._fused(token_ids_BT, image_BND, valid_BT), None))
        return logits_BTV

    def prefill(
        self, token_ids_BT: Tensor, image_BND: Tensor, *, valid_BT: Tensor | None = None, capacity: int
    ) -> tuple[Tensor, KVCache]:
        """Read image and prompt, keeping keys and values.

        Args:
            token_ids_BT: the prompts, T at least 1.
            image_BND: images that `see` has seen.
            valid_BT: True at tokens, False at padding behind them; None when nothing is padded.
            capacity: text tokens in all, prompt included, that the cache shall hold.

        Returns:
            logits_BV after each prompt's last token, and the cache for `step`.
        """
        assert self.config.cacheable, "a bidirectional readout has nothing to cache"
        batch, length = token_ids_BT.shape
        fused = self._fused(token_ids_BT, image_BND, valid_BT)
        count_B = torch.full((batch,), length, device=token_ids_BT.device) if valid_BT is None else valid_BT.sum(dim=1)
        beside = fused.x_BLD.shape[1] - length  # image tokens that stand in the sequence
        cache = KVCache(num_layers=len(self.blocks), capacity=capacity + beside, position_B=count_B)
        x_BTD = self._run(fused, cache)
        cache.length = fused.x_BLD.shape[1]
        last_B1D = x_BTD[torch.arange(batch, device=x_BTD.device), count_B - 1][:, None]
        logits_B1V: Tensor = self.head(last_B1D)
        return logits_B1V[:, 0], cache

    def step(self, token_ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Read more text behind the cache; the caller then keeps it with `cache.advance(T)`.

        Returns:
            logits_BV after the last token of each row.
        """
        offset_T = torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device)
        position_BT = cache.position_B[:, None] + offset_T
        fused = continued(self.text(token_ids_BT, position_BT), position_BT)
        logits_B1V: Tensor = self.head(self._run(fused, cache)[:, -1:])
        return logits_B1V[:, 0]

    def _fused(self, token_ids_BT: Tensor, image_BND: Tensor, valid_BT: Tensor | None) -> FusedSequence:
        """Return text and image as one sequence, from the text's start."""
        position_BT = text_positions(token_ids_BT, valid_BT)
        return self.fuse(self.text(token_ids_BT, position_BT), position_BT, image_BND, valid_BT)

    def _run(self, fused: FusedSequence, cache: KVCache | None) -> Tensor:
        """Return the last block's output at the readout positions."""
        key_step_BK, key_valid_BK = fused.step_BL, fused.valid_BL
        if cache is not None:
            key_step_BK, key_valid_BK = cache.write_steps(fused.step_BL, fused.valid_BL)
        mask_B1QK = visibility_mask(fused.step_BL, key_step_BK, key_valid_BK)
        x_BLD = fused.x_BLD
        for index, block in enumerate(self.blocks):
            context = Context(
                mask_B1QK=mask_B1QK,
                memory_BMD=fused.memory_BMD,
                cache=None if cache is None else cache.layers[index],
                start=0 if cache is None else cache.length,
            )
            x_BLD = block(x_BLD, context)
        return x_BLD[:, fused.readout]


def initialise(model: MultimodalTransformer) -> None:
    """Fill the weights for training: Xavier for matrices, small normal for embeddings, positions and class token."""
    for name, parameter in model.named_parameters():
        if name.endswith(("tokens.weight", "positions", "class_token")):
            nn.init.normal_(parameter, std=0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "head.projection":
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if model.config.text.head == "own":
        nn.init.normal_(model.head.projection.weight, std=0.02)
    if model.head.projection.bias is not None:
        nn.init.zeros_(model.head.projection.bias)
