"""Next-token prediction, with images or without.

R rows (captions or sentences), T text tokens, P tokens to learn of all rows, D width.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Row
from mmt_cli.training.vocabulary_loss import vocabulary_loss

IGNORED = -100  # cross-entropy's own mark for positions without a target
_READ_TOGETHER = 32  # rows, about, on a CPU: fewer fill its matrix kernels less, more are padded to longer ones


def next_token_loss(
    model: MultimodalTransformer,
    image: ImageTokens | None,
    rows: Sequence[Row],
    *,
    label_smoothing: float,
    generator: torch.Generator,
    start: int = 1,
    image_R: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy in nats of the next token: of every word, or at one place a row.

    A model that reads out at every text position learns from every word; one with a single bidirectional readout
    learns from the word behind a random prefix of each row, drawn from `generator`.

    Args:
        model: reads the rows.
        image: what the rows look at; None: the text stands alone.
        rows: what is given, words, end token.
        label_smoothing: share of probability spread over all words.
        generator: of the prefixes.
        start: how many tokens of each row are given; they are no targets.
        image_R: which image each row has; None: one a row.
    """
    if not model.config.cacheable:
        ends = [int(torch.randint(start, len(row), (), generator=generator)) for row in rows]
        rows = [row[: end + 1] for row, end in zip(rows, ends, strict=True)]
    x_PD, target_P, _ = readouts(model, image, rows, start=start, image_R=image_R)
    return vocabulary_loss(model.head, x_PD, target_P, label_smoothing=label_smoothing)


def readouts(
    model: MultimodalTransformer,
    image: ImageTokens | None,
    rows: Sequence[Row],
    *,
    start: int = 1,
    image_R: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_PD, what the model reads out before each token to learn, target_P, these tokens, and row_P, whose.

    Every token behind the first `start` of a row is learned; with a single readout a row's last one alone. Arguments
    are those of `next_token_loss`.
    """
    device = model.text.tokens.weight.device
    owners = list(range(len(rows))) if image_R is None else image_R.tolist()
    read, targets, found = [], [], []
    for images, places in _read_together(rows, owners, device):
        mine = [rows[place] for place in places]
        firsts = [start if model.config.cacheable else len(row) - 1 for row in mine]
        token_ids_RT, valid_RT = padded([row[:-1] for row in mine], device)
        seen = None if image is None else image[torch.tensor(images, device=device)]
        x_RTD = model.run(model.fused(token_ids_RT, seen, valid_BT=valid_RT))
        length = x_RTD.shape[1]  # of the readouts: one, or one a token
        wanted = [
            row * length + before % length
            for row, (first, ids) in enumerate(zip(firsts, mine, strict=True))
            for before in range(first - 1, len(ids) - 1)
        ]
        read.append(x_RTD.flatten(0, 1).index_select(0, torch.tensor(wanted, device=device)))
        targets += [token for first, ids in zip(firsts, mine, strict=True) for token in ids[first:]]
        found += [place for place, first in zip(places, firsts, strict=True) for _ in rows[place][first:]]
    return torch.cat(read), torch.tensor(targets, device=device), torch.tensor(found, device=device)


def _read_together(
    rows: Sequence[Row], owners: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield images and the places of their rows, which are read at once: of each image all, behind each other.

    Images whose longest rows are alike come together, so that a short row is not filled up to the longest of the batch,
    twice its length. On a GPU all are read at once: there, more and smaller kernels cost more than padding. An image
    stands once for all its rows where each has as many of them, else once for each.
    """
    of_image: dict[int, list[int]] = {}
    for place, owner in enumerate(owners):
        of_image.setdefault(owner, []).append(place)
    images = sorted(of_image, key=lambda owner: max(len(rows[place]) for place in of_image[owner]))
    groups = min(max(1, len(rows) // _READ_TOGETHER), len(images)) if device.type == "cpu" else 1
    for first, last in pairwise(len(images) * group // groups for group in range(groups + 1)):
        mine = images[first:last]
        places = [place for owner in mine for place in of_image[owner]]
        alike = len({len(of_image[owner]) for owner in mine}) == 1
        yield mine if alike else [owners[place] for place in places], places


def padded(rows: Sequence[Row], device: torch.device, *, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids_RT with `fill` behind the shorter rows, and valid_RT: False there."""
    longest = max(map(len, rows))
    ids_RT = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
    length_R = torch.tensor([len(row) for row in rows], device=device)
    return ids_RT, torch.arange(longest, device=device) < length_R[:, None]
