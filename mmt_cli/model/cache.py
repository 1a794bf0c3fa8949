"""Keys and values of the tokens already read, in memory taken once.

The model writes behind `length`; only decoding advances, trims or reorders.
B batch, R rows after reordering, G rows of the memory, H heads, K slots, L new tokens, T text tokens, E head width,
M memory (image) tokens, F random features, D width.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmt_cli.model.mask import Tokens

_INT8_MAX = 127
# Where something is written: a number, or one on the device, so that the same work can be done again elsewhere.
Place = int | Tensor


def put(store: Tensor, dim: int, start: Place, new: Tensor) -> None:
    """Write along a dimension, from `start` on; a single slot where that is on the device."""
    if isinstance(start, Tensor):
        store.index_copy_(dim, start, new.expand(*store.shape[:dim], 1, *store.shape[dim + 1 :]))
    else:
        store.narrow(dim, start, new.shape[dim]).copy_(new)


class Slots:
    """Keys, or values, of one layer: `capacity` slots, filled from the front."""

    def __init__(self, like_BHLE: Tensor, capacity: int) -> None:
        batch, heads, _, head_width = like_BHLE.shape
        self.parts = [like_BHLE.new_empty(batch, heads, capacity, head_width)]

    def write(self, x_BHLE: Tensor, start: Place) -> None:
        """Store tokens in the slots from `start` on."""
        for part, new in zip(self.parts, self.encode(x_BHLE), strict=True):
            put(part, 2, start, new)

    def read(self, end: int) -> Tensor:
        """Return x_BHKE of the slots before `end`."""
        return self.decode([part[:, :, :end] for part in self.parts])

    def encode(self, x_BHLE: Tensor) -> Sequence[Tensor]:
        """Return what is stored of tokens, one tensor a part."""
        return [x_BHLE]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tokens of what was stored of them."""
        return parts[0]

    def reorder(self, row_R: Tensor, length: int) -> None:
        """Keep these rows, in this order; of each the first `length` slots."""
        self.parts = [_reorder(part, row_R, length) for part in self.parts]


class Int8Slots(Slots):
    """The same in 8 bits, one scale for each token and head.

    Numbers are off by 1/254 of the largest at most in float32, by 1/100 in bfloat16, which itself rounds as coarsely.
    """

    def __init__(self, like_BHLE: Tensor, capacity: int) -> None:
        batch, heads, _, head_width = like_BHLE.shape
        self.parts = [
            like_BHLE.new_empty(batch, heads, capacity, head_width, dtype=torch.int8),
            like_BHLE.new_empty(batch, heads, capacity, 1),
        ]

    def encode(self, x_BHLE: Tensor) -> Sequence[Tensor]:
        """Return values and scales."""
        scale_BHL1 = (x_BHLE.abs().amax(dim=-1, keepdim=True) / _INT8_MAX).clamp_min(torch.finfo(x_BHLE.dtype).tiny)
        return [(x_BHLE / scale_BHL1).round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8), scale_BHL1]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """Return values times scales."""
        return parts[0] * parts[1]


SLOTS: dict[str, type[Slots]] = {"full": Slots, "int8": Int8Slots}


@dataclass(kw_only=True)
class PrefixSums:
    """What a linear kernel keeps of the first `count` tokens."""

    count: int
    values_BHFE: Tensor
    features_BHF: Tensor

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.values_BHFE, self.features_BHF = self.values_BHFE[row_R], self.features_BHF[row_R]


class LayerCache:
    """One block's keys and values: of the sequence, and of the image beside it for cross-attention."""

    def __init__(self, capacity: int, slots: type[Slots] = Slots) -> None:
        self.capacity = capacity
        self.slots = slots
        self.sequence: tuple[Slots, Slots] | None = None
        self.memory: tuple[Slots, Slots] | None = None
        self.memory_length = 0
        self.sums: PrefixSums | None = None

    def write(self, k_BHLE: Tensor, v_BHLE: Tensor, start: Place) -> tuple[Tensor, Tensor]:
        """Store keys and values in the slots from `start` on; return all up to there, and where that is not known all.

        These are finite even where nothing was written.
        """
        end = self.capacity if isinstance(start, Tensor) else start + k_BHLE.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache of {self.capacity}"
        if self.sequence is None:
            self.sequence = self.slots(k_BHLE, self.capacity), self.slots(v_BHLE, self.capacity)
        k, v = self.sequence
        k.write(k_BHLE, start)
        v.write(v_BHLE, start)
        return k.read(end), v.read(end)

    def write_memory(self, k_BHME: Tensor, v_BHME: Tensor) -> None:
        """Store the image's keys and values."""
        self.memory_length = k_BHME.shape[2]
        self.memory = self.slots(k_BHME, self.memory_length), self.slots(v_BHME, self.memory_length)
        for slots, x_BHME in zip(self.memory, (k_BHME, v_BHME), strict=True):
            slots.write(x_BHME, 0)

    def read_memory(self) -> tuple[Tensor, Tensor]:
        """Return the image's keys and values."""
        assert self.memory is not None, "nothing written yet"
        return self.memory[0].read(self.memory_length), self.memory[1].read(self.memory_length)

    def reorder(self, row_R: Tensor, length: int, memory_row_G: Tensor | None = None) -> None:
        """Keep these rows, in this order, and those of the memory; None leaves the memory as it is."""
        for slots in self.sequence or ():
            slots.reorder(row_R, length)
        if memory_row_G is not None:
            for slots in self.memory or ():
                slots.reorder(memory_row_G, self.memory_length)
        if self.sums is not None:
            self.sums.reorder(row_R)


@dataclass(frozen=True, kw_only=True)
class TextStart:
    """Where the text begins in the counts that image and text share, and how many slots stand outside the text."""

    step: int
    rotary: int
    slots: int  # of image tokens that are not among the text's own positions
    placeholders: int | Tensor  # positions of the text that image tokens have taken; B1 where rows differ


class KVCache:
    """The whole model's cache, with what masks, positions and gates need to go on behind it."""

    def __init__(
        self, *, num_layers: int, capacity: int, position_B: Tensor, start: TextStart, slots: type[Slots] = Slots
    ) -> None:
        self.capacity = capacity
        self.length = 0
        self.start = start
        self.layers = [LayerCache(capacity, slots) for _ in range(num_layers)]
        self.position_B = position_B  # of the next text token in each row
        self.image_B = torch.arange(len(position_B), device=position_B.device)
        self.memory_image_G = self.image_B  # of each row of the memory, which stands for as many rows as all others
        self.tokens: Tokens | None = None  # of all slots
        self.text_sum_BTD: Tensor | None = None  # for gates: running sums of the text
        self.image_mean_BD: Tensor | None = None
        self.memory_mask_G11M: Tensor | None = None  # False at padding of what cross-attention looks at

    @property
    def place(self) -> Place:
        """Where the next token is written."""
        return self.length

    def write_tokens(self, new: Tokens) -> Tokens:
        """Store the facts about new tokens behind `length`; return those about all keys up to there."""
        if self.tokens is None:
            self.tokens = self._empty(new)
        kept = self.tokens
        put(kept.step_BL, 1, self.place, new.step_BL)
        put(kept.place_BL, 1, self.place, new.place_BL)
        put(kept.image_BL, 1, self.place, new.image_BL)
        if kept.valid_BL is not None:
            put(kept.valid_BL, 1, self.place, torch.ones_like(new.image_BL) if new.valid_BL is None else new.valid_BL)
        return self._tokens_with(new.step_BL.shape[1])

    def _tokens_with(self, count: int) -> Tokens:
        """Return the facts about all slots that are written, `count` behind `length` among them."""
        assert self.tokens is not None, "no token yet"
        kept, end = self.tokens, self.length + count
        return Tokens(
            step_BL=kept.step_BL[:, :end],
            place_BL=kept.place_BL[:, :end],
            image_BL=kept.image_BL[:, :end],
            valid_BL=None if kept.valid_BL is None else kept.valid_BL[:, :end],
        )

    def write_text_sums(self, sum_BTD: Tensor) -> None:
        """Store the running sums of new text tokens behind those that are kept."""
        if self.text_sum_BTD is None:
            room = self.capacity - self.start.slots
            self.text_sum_BTD = sum_BTD.new_empty(len(sum_BTD), room, sum_BTD.shape[-1])
        first = self.length - self.start.slots if self.length else 0
        self.text_sum_BTD[:, first : first + sum_BTD.shape[1]] = sum_BTD

    def text_so_far(self) -> Tensor | None:
        """Return the sum of the text tokens that are kept, BD."""
        if self.text_sum_BTD is None:
            return None
        return self.text_sum_BTD[:, self.length - self.start.slots - 1]

    def advance(self, count: int) -> None:
        """Keep the last `count` text tokens that the model wrote."""
        self.length += count
        self.position_B = self.position_B + count

    def trim(self, count: int) -> None:
        """Forget the last `count` text tokens."""
        self.advance(-count)

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times (beams) or not at all (finished)."""
        memory_row_G = self._reorder_images(self.image_B[row_R])
        for layer in self.layers:
            layer.reorder(row_R, self.length, memory_row_G)
        self.position_B = self.position_B[row_R]
        if self.tokens is not None:
            kept, valid_BL = self.tokens, self.tokens.valid_BL
            self.tokens = Tokens(
                step_BL=kept.step_BL[row_R],
                place_BL=kept.place_BL[row_R],
                image_BL=kept.image_BL[row_R],
                valid_BL=None if valid_BL is None else valid_BL[row_R],
            )
        if self.text_sum_BTD is not None:
            self.text_sum_BTD = self.text_sum_BTD[row_R]
        if self.image_mean_BD is not None:
            self.image_mean_BD = self.image_mean_BD[row_R]
        if isinstance(self.start.placeholders, Tensor):
            self.start = dataclasses.replace(self.start, placeholders=self.start.placeholders[row_R])
        if self.memory_mask_G11M is not None and memory_row_G is not None:
            self.memory_mask_G11M = self.memory_mask_G11M[memory_row_G]

    def _reorder_images(self, image_R: Tensor) -> Tensor | None:
        """Note which image each row has from now on; return the rows of the memory to keep, None for all as they are.

        Rows that follow each other and have one image, as beams do, share a row of the memory, where all images have
        as many of them: so the memory is read once for each image.
        """
        if torch.equal(image_R, self.image_B):
            return None
        self.image_B = image_R
        image_G, count_G = torch.unique_consecutive(image_R, return_counts=True)
        if len(image_G.unique()) < len(image_G) or len(count_G.unique()) > 1:
            image_G = image_R
        if torch.equal(image_G, self.memory_image_G):
            return None
        row_G: Tensor = (self.memory_image_G == image_G[:, None]).int().argmax(dim=1)
        self.memory_image_G = image_G
        return row_G

    def _empty(self, like: Tokens) -> Tokens:
        """Return room for the facts about all slots; padding can come with the first tokens alone."""
        shape = len(self.position_B), self.capacity
        padded = like.valid_BL is not None
        return Tokens(
            step_BL=like.step_BL.new_zeros(shape),
            place_BL=like.place_BL.new_zeros(shape),
            image_BL=like.image_BL.new_zeros(shape),
            valid_BL=like.image_BL.new_zeros(shape) if padded else None,
        )


def _reorder(x_BHKE: Tensor, row_R: Tensor, length: int) -> Tensor:
    """Copy only the slots in use."""
    batch, heads, capacity, head_width = x_BHKE.shape
    if len(row_R) == batch:
        x_BHKE[:, :, :length] = x_BHKE[row_R, :, :length]
        return x_BHKE
    x_RHKE = x_BHKE.new_empty(len(row_R), heads, capacity, head_width)
    x_RHKE[:, :, :length] = x_BHKE[row_R, :, :length]
    return x_RHKE
