"""Fusion: how image and text become one sequence; all that differs between ways to fuse is data made here.

B batch, T text tokens, N image tokens, M memory tokens, L sequence, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmt_cli.model.config import ConcatConfig, CrossConfig


@dataclass(frozen=True, kw_only=True)
class FusedSequence:
    """What the blocks read: the sequence, who sees whom, and the image beside it for cross-attention."""

    x_BLD: Tensor
    step_BL: Tensor  # a token sees the tokens whose step is not later than its own; B may be 1
    valid_BL: Tensor | None = None  # False at padding; None when there is none
    memory_BMD: Tensor | None = None
    readout: slice  # the positions whose logits the model returns


Fuse = Callable[[Tensor, Tensor, Tensor, Tensor | None], FusedSequence]


def concat_prefix(text_BTD: Tensor, position_BT: Tensor, image_BND: Tensor, valid_BT: Tensor | None) -> FusedSequence:
    """Image, then text: the image sees itself, the text the image and what stands before it (GIT, prefix-LM)."""
    x_BLD = torch.cat([image_BND, text_BTD], dim=1)
    steps = [_image_steps(image_BND, position_BT), position_BT + 1]
    valid_BL = None if valid_BT is None else torch.cat([_all_valid(image_BND), valid_BT], dim=1)
    readout = slice(image_BND.shape[1], None)
    return FusedSequence(x_BLD=x_BLD, step_BL=torch.cat(steps, dim=1), valid_BL=valid_BL, readout=readout)


def concat_text_first(
    text_BTD: Tensor, position_BT: Tensor, image_BND: Tensor, valid_BT: Tensor | None
) -> FusedSequence:
    """Text, then image, with the same visibility: steps, not places, say who sees whom."""
    x_BLD = torch.cat([text_BTD, image_BND], dim=1)
    steps = [position_BT + 1, _image_steps(image_BND, position_BT)]
    valid_BL = None if valid_BT is None else torch.cat([valid_BT, _all_valid(image_BND)], dim=1)
    readout = slice(0, text_BTD.shape[1])
    return FusedSequence(x_BLD=x_BLD, step_BL=torch.cat(steps, dim=1), valid_BL=valid_BL, readout=readout)


def _bidirectional(fuse: Fuse, class_position: Callable[[int], int]) -> Fuse:
    """Let everything see everything, and read once, at the class token that opens the image."""

    def fused(text_BTD: Tensor, position_BT: Tensor, image_BND: Tensor, valid_BT: Tensor | None) -> FusedSequence:
        causal = fuse(text_BTD, position_BT, image_BND, valid_BT)
        place = class_position(text_BTD.shape[1])
        return FusedSequence(
            x_BLD=causal.x_BLD,
            step_BL=torch.zeros_like(causal.step_BL),
            valid_BL=causal.valid_BL,
            readout=slice(place, place + 1),
        )

    return fused


def cross(text_BTD: Tensor, position_BT: Tensor, image_BND: Tensor, valid_BT: Tensor | None) -> FusedSequence:
    """Causal text; the image stands beside it as the memory of cross-attention."""
    return FusedSequence(
        x_BLD=text_BTD,
        step_BL=position_BT + 1,
        valid_BL=valid_BT,
        memory_BMD=image_BND,
        readout=slice(0, text_BTD.shape[1]),
    )


def continued(text_BTD: Tensor, position_BT: Tensor) -> FusedSequence:
    """More text behind what a cache holds already."""
    return FusedSequence(x_BLD=text_BTD, step_BL=position_BT + 1, readout=slice(0, text_BTD.shape[1]))


def build_fusion(config: ConcatConfig | CrossConfig) -> Fuse:
    """Return the function that the config names."""
    if isinstance(config, CrossConfig):
        return cross
    image_first = config.order == "image_first"
    fuse = concat_prefix if image_first else concat_text_first
    if config.visibility == "prefix":
        return fuse
    return _bidirectional(fuse, (lambda _: 0) if image_first else (lambda text_length: text_length))


def _image_steps(image_BND: Tensor, position_BT: Tensor) -> Tensor:
    """Return zeros: the image stands before all text, wherever its tokens are in the sequence."""
    return position_BT.new_zeros(position_BT.shape[0], image_BND.shape[1])


def _all_valid(image_BND: Tensor) -> Tensor:
    return torch.ones(image_BND.shape[:2], dtype=torch.bool, device=image_BND.device)
