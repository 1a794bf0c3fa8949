"""Next-token prediction, with images or without.

R rows (captions or sentences), T text tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Row
from mmt_cli.training.vocabulary_loss import vocabulary_loss

IGNORED = -100  # cross-entropy's own mark for positions without a target


def next_token_loss(
    model: MultimodalTransformer,
    image: ImageTokens | None,
    rows: Sequence[Row],
    *,
    label_smoothing: float,
    generator: torch.Generator,
    start: int = 1,
) -> Tensor:
    """Return the mean cross-entropy in nats of the next token: of every word, or at one place a row.

    A model that reads out at every text position learns from every word; one with a single bidirectional readout
    learns from the word behind a random prefix of each row, drawn from `generator`.

    Args:
        model: reads the rows.
        image: one a row; None: the text stands alone.
        rows: what is given, words, end token.
        label_smoothing: share of probability spread over all words.
        generator: of the prefixes.
        start: how many tokens of each row are given; they are no targets.
    """
    if not model.config.cacheable:
        ends = [int(torch.randint(start, len(row), (), generator=generator)) for row in rows]
        rows = [row[: end + 1] for row, end in zip(rows, ends, strict=True)]
    token_ids_RT, target_RT, valid_RT = teacher(rows, model.text.tokens.weight.device, start=start)
    if not model.config.cacheable:
        last_R = valid_RT.sum(dim=1, keepdim=True) - 1
        target_RT = target_RT.gather(1, last_R)
    x_RTD = model.run(model.fused(token_ids_RT, image, valid_BT=valid_RT))
    return vocabulary_loss(
        model.head, x_RTD.flatten(0, 1), target_RT.flatten(), label_smoothing=label_smoothing, ignore_index=IGNORED
    )


def teacher(rows: Sequence[Row], device: torch.device, *, start: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs token_ids_RT, target_RT one token on (IGNORED for none), and valid_RT.

    The first `start` tokens of each row are given: no target is among them.
    """
    targets = [(IGNORED,) * (start - 1) + row[start:] for row in rows]
    token_ids_RT, valid_RT = padded([row[:-1] for row in rows], device)
    return token_ids_RT, padded(targets, device, fill=IGNORED)[0], valid_RT


def padded(rows: Sequence[Row], device: torch.device, *, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids_RT with `fill` behind the shorter rows, and valid_RT: False there."""
    longest = max(map(len, rows))
    ids_RT = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
    length_R = torch.tensor([len(row) for row in rows], device=device)
    return ids_RT, torch.arange(longest, device=device) < length_R[:, None]
