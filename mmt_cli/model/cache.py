"""Keys and values of the tokens already read, in memory taken once.

The model writes behind `length`; only decoding advances, trims or reorders.
B batch, R rows after reordering, H heads, K slots, L new tokens, E head width, M memory (image) tokens.
"""

import torch
from torch import Tensor


class LayerCache:
    """One block's keys and values: `capacity` slots for self-attention, and the image's for cross-attention."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.self_kv: tuple[Tensor, Tensor] | None = None
        self.memory_kv: tuple[Tensor, Tensor] | None = None

    def write(self, k_BHLE: Tensor, v_BHLE: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store keys and values in the slots from `start` on; return all up to there, as views."""
        if self.self_kv is None:
            batch, heads, _, head_width = k_BHLE.shape
            shape = (batch, heads, self.capacity, head_width)
            self.self_kv = k_BHLE.new_empty(shape), v_BHLE.new_empty(shape)
        end = start + k_BHLE.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache of {self.capacity}"
        k_BHKE, v_BHKE = self.self_kv
        k_BHKE[:, :, start:end] = k_BHLE
        v_BHKE[:, :, start:end] = v_BHLE
        return k_BHKE[:, :, :end], v_BHKE[:, :, :end]

    def reorder(self, row_R: Tensor, length: int, *, same_image: bool) -> None:
        """Keep these rows, in this order; the memory's rows stay when each row keeps its image."""
        if self.self_kv is not None:
            self.self_kv = _reorder(self.self_kv[0], row_R, length), _reorder(self.self_kv[1], row_R, length)
        if self.memory_kv is not None and not same_image:
            self.memory_kv = self.memory_kv[0][row_R], self.memory_kv[1][row_R]


class KVCache:
    """The whole model's cache, with what masks need: step and validity per slot, next text position per row."""

    def __init__(self, *, num_layers: int, capacity: int, position_B: Tensor) -> None:
        self.capacity = capacity
        self.length = 0
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]
        rows, device = position_B.shape[0], position_B.device
        self.position_B = position_B
        self.image_B = torch.arange(rows, device=device)
        self.step_BK = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self.valid_BK: Tensor | None = None

    def write_steps(self, step_BL: Tensor, valid_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Store the new tokens' steps and validity behind `length`; return those of all keys up to there."""
        end = self.length + step_BL.shape[1]
        self.step_BK[:, self.length : end] = step_BL
        if valid_BL is not None and self.valid_BK is None:
            self.valid_BK = torch.ones_like(self.step_BK, dtype=torch.bool)
        if self.valid_BK is None:
            return self.step_BK[:, :end], None
        self.valid_BK[:, self.length : end] = True if valid_BL is None else valid_BL
        return self.step_BK[:, :end], self.valid_BK[:, :end]

    def advance(self, count: int) -> None:
        """Keep the last `count` text tokens that the model wrote."""
        self.length += count
        self.position_B = self.position_B + count

    def trim(self, count: int) -> None:
        """Forget the last `count` text tokens."""
        self.advance(-count)

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times (beams) or not at all (finished)."""
        image_R = self.image_B[row_R]
        same_image = torch.equal(image_R, self.image_B)
        for layer in self.layers:
            layer.reorder(row_R, self.length, same_image=same_image)
        self.image_B = image_R
        self.position_B = self.position_B[row_R]
        self.step_BK = self.step_BK[row_R]
        self.valid_BK = None if self.valid_BK is None else self.valid_BK[row_R]


def _reorder(x_BHKE: Tensor, row_R: Tensor, length: int) -> Tensor:
    """Copy only the slots in use."""
    batch, heads, capacity, head_width = x_BHKE.shape
    if len(row_R) == batch:
        x_BHKE[:, :, :length] = x_BHKE[row_R, :, :length]
        return x_BHKE
    x_RHKE = x_BHKE.new_empty(len(row_R), heads, capacity, head_width)
    x_RHKE[:, :, :length] = x_BHKE[row_R, :, :length]
    return x_RHKE
