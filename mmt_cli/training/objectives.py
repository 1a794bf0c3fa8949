"""What is learned: the loss of a batch.

B images, R rows (captions), T text tokens, N image tokens, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

IGNORED = -100  # cross-entropy's own mark for positions without a target


def caption_loss(
    model: MultimodalTransformer,
    image: ImageTokens,
    rows: Sequence[Sequence[int]],
    *,
    label_smoothing: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the mean cross-entropy in nats of the next token: of every token, or at one place a caption.

    A model that reads out at every text position learns from every word; one with a single bidirectional readout
    learns from the word behind a random prefix of each caption, drawn from `generator`.
    """
    if not model.config.cacheable:
        ends = [int(torch.randint(1, len(row), (), generator=generator)) for row in rows]
        rows = [row[: end + 1] for row, end in zip(rows, ends, strict=True)]
    token_ids_RT, target_RT, valid_RT = _teacher(rows, image.x_BND.device)
    if not model.config.cacheable:
        last_R = valid_RT.sum(dim=1, keepdim=True) - 1
        target_RT = target_RT.gather(1, last_R)
    logits_RTV = model.read(token_ids_RT, image, valid_BT=valid_RT)
    return functional.cross_entropy(
        logits_RTV.flatten(0, 1), target_RT.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing
    )


def _teacher(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets one token on, and which positions are no padding."""
    longest = max(map(len, rows)) - 1
    inputs = [[*row[:-1], *[0] * (longest - len(row) + 1)] for row in rows]
    targets = [[*row[1:], *[IGNORED] * (longest - len(row) + 1)] for row in rows]
    target_RT = torch.tensor(targets, device=device)
    return torch.tensor(inputs, device=device), target_RT, target_RT != IGNORED
