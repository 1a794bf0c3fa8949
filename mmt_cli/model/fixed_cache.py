"""A cache whose tensors keep place and shape while texts grow: a step is the same work each time, to be recorded once.

R rows, L new tokens (one), G rows of the memory.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from mmt_cli.model.cache import KVCache
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.mask import Tokens

_NEVER = torch.iinfo(torch.long).max  # a step that no query reaches: hides a slot


def can_be_fixed(config: ModelConfig) -> bool:
    """Say whether a model's steps can be of one shape: sums of the text and other kernels are kept in other ways."""
    return config.cacheable and config.text.block.kernel.kind == "full" and config.fusion.gate != "dynamic"


class FixedCache(KVCache):
    """The same with all slots there from the start, those to come hidden, and the number of the others on the device.

    Rows stay as many as they are, each at its image.
    """

    def __init__(self, cache: KVCache, last_position: int) -> None:
        """Take over what a cache holds, which is of no use by itself once something is written here.

        Args:
            cache: behind the prompts.
            last_position: of the model: where rows stay that have finished, while others go on.
        """
        device = cache.position_B.device
        super().__init__(num_layers=0, capacity=cache.capacity, position_B=cache.position_B.clone(), start=cache.start)
        self.layers, self.tokens = cache.layers, cache.tokens
        self.memory_mask_G11M = None if cache.memory_mask_G11M is None else cache.memory_mask_G11M.clone()
        self.last_position = last_position
        self.length_1 = torch.tensor([cache.length], device=device)
        self._hide(cache.length)

    @property
    def place(self) -> Tensor:
        """Where the next token is written."""
        return self.length_1

    def load(self, cache: KVCache) -> None:
        """Copy what another cache of the same shape holds."""
        for mine, theirs in zip(_tensors(self), _tensors(cache), strict=True):
            mine.copy_(theirs)
        self.length_1.fill_(cache.length)
        self._hide(cache.length)

    def advance(self, count: int) -> None:
        """Keep the last `count` text tokens that the model wrote."""
        self.length_1 += count
        self.position_B.add_(count).clamp_(max=self.last_position)

    def go_back(self, cache: KVCache) -> None:
        """Forget what was written since another cache, which was taken over, was as it is."""
        self.length_1.fill_(cache.length)
        self.position_B.copy_(cache.position_B)

    def copy_rows(self, from_R: Tensor, to_R: Tensor) -> None:
        """Let some rows be what others are that have the same image; none of these is one of those."""
        for tensor in _of_rows(self):
            tensor[to_R] = tensor[from_R]

    def _tokens_with(self, count: int) -> Tokens:
        assert self.tokens is not None, "no token yet"
        return self.tokens

    def _hide(self, length: int) -> None:
        assert self.tokens is not None, "no token yet"
        self.tokens.step_BL[:, length:] = _NEVER
        for layer in self.layers:
            for slots in layer.sequence or ():
                for part in slots.parts:
                    part[:, :, length:] = 0  # hidden, but nothing times NaN is NaN


def shape_of(cache: KVCache) -> Hashable:
    """Return what is equal for caches that can be loaded into each other."""
    start = cache.start
    counts = (
        start.step,
        start.rotary,
        start.slots,
        None if isinstance(start.placeholders, Tensor) else start.placeholders,
    )
    return cache.capacity, counts, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in _tensors(cache))


def _tensors(cache: KVCache) -> list[Tensor]:
    memory = [part for layer in cache.layers for slots in layer.memory or () for part in slots.parts]
    mask = [] if cache.memory_mask_G11M is None else [cache.memory_mask_G11M]
    return [*_of_rows(cache), *memory, *mask]


def _of_rows(cache: KVCache) -> list[Tensor]:
    """Return what has a part for each row, and is not the image's."""
    kept, placeholders = cache.tokens, cache.start.placeholders
    assert kept is not None, "no token yet"
    return [
        cache.position_B,
        *(kept.step_BL, kept.place_BL, kept.image_BL),
        *([] if kept.valid_BL is None else [kept.valid_BL]),
        *([placeholders] if isinstance(placeholders, Tensor) else []),
        *(part for layer in cache.layers for slots in layer.sequence or () for part in slots.parts),
    ]
