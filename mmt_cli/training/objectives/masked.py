"""Masked modelling: hidden words from the rest and the image, hidden squares of the image from the rest of it.

B images, R rows (captions), T text tokens, N cells of the image's grid, M masked places, P values of a cell, V
vocabulary, C channels, H height, W width in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.errors import UsageError
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch, Row
from mmt_cli.training.objectives.base import Losses, Objective
from mmt_cli.training.objectives.tokens import IGNORED, padded

WORD_SHARE = 0.15  # BERT's
CELL_SHARE = 0.5  # SimMIM's
_FLAT = 1e-6  # MAE's; added to a cell's variance, which may be 0


class Masked(Objective):
    """Masked text modelling (Devlin et al. 2019), the image in sight, and masked image modelling.

    Images as in SimMIM (Xie et al. 2022): a hidden cell is 0, the mean colour, in every pixel, so that any tower can
    read it, and one linear map gives the cell's pixels from its token. The targets are each cell's pixels less their
    mean, over their deviation (MAE, He et al. 2022).
    """

    def __init__(
        self,
        model: MultimodalTransformer,
        tokenizer: Tokenizer,
        *,
        grid: tuple[int, int],
        pixels: tuple[int, int, int],
        label_smoothing: float,
    ) -> None:
        """Add the linear map.

        Args:
            model: sees and reads.
            tokenizer: the model's.
            grid: rows and columns of its image tokens.
            pixels: channels, height and width of its images.
            label_smoothing: share of probability spread over all words.
        """
        super().__init__(model)
        self.grid = grid
        self.label_smoothing = label_smoothing
        self.mask_id = mask_token(tokenizer)
        self.never_masked = {tokenizer.named_id(name) for name in tokenizer.names} | {model.config.placeholder_id}
        values = cut_cells(torch.zeros(1, *pixels), grid).shape[-1]
        self.to_pixels = nn.Linear(model.config.memory_width, values)

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return `loss` and its parts `masked_text`, in nats, and `masked_image`, mean squares of deviations."""
        logits_MV, target_M = self.words(batch, generator)
        text = functional.cross_entropy(logits_MV, target_M, label_smoothing=self.label_smoothing)
        image = functional.mse_loss(*self.cells(batch, generator))
        return {"loss": text + image, "masked_text": text, "masked_image": image}

    def words(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Hide words; return what the model makes of the hidden places, logits_MV, and the words there, target_M."""
        pixels_BCHW, image_R = batch.seen
        model = self.model
        cut = [row[: model.config.text.max_length] for row in batch.rows]
        inputs, targets = mask_words(cut, self.mask_id, self.never_masked, generator, start=batch.start)
        token_ids_RT, valid_RT = padded(inputs, self.device)
        target_RT, _ = padded(targets, self.device, fill=IGNORED)
        image = model.see(pixels_BCHW.to(self.device))[image_R.to(self.device)]
        x_RTD = model.run(model.fused(token_ids_RT, image, valid_BT=valid_RT).bidirectional())
        masked_RT = target_RT != IGNORED
        logits_MV: Tensor = model.head(x_RTD[masked_RT])
        return logits_MV, target_RT[masked_RT]

    def cells(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Hide cells; return predicted_MP, what the model makes of the hidden ones, and target_MP, both float32."""
        pixels_BCHW = batch.seen[0]
        masked_BN = choose_cells(len(pixels_BCHW), self.grid[0] * self.grid[1], generator).to(self.device)
        pixels_BCHW = pixels_BCHW.to(self.device)
        image: ImageTokens = self.model.see(hide_cells(pixels_BCHW, masked_BN, self.grid))
        assert image.grid == self.grid, f"cells {image.grid} in place of {self.grid}"
        token_MD = image.x_BND[:, -masked_BN.shape[1] :][masked_BN]  # class tokens stand before the cells
        target_MP = normalised(cut_cells(pixels_BCHW, self.grid)[masked_BN])
        return self.to_pixels(token_MD).float(), target_MP


def mask_token(tokenizer: Tokenizer) -> int:
    """Return the token that stands for a hidden word: the tokenizer's own, or else the one for padding.

    No text holds <pad>, and padding is hidden whatever its id: as a mask it cannot be mistaken for a word.

    Raises:
        UsageError: it has neither, or pads with a token that texts begin or end with.
    """
    ids = {name: tokenizer.named_id(name) for name in tokenizer.names}
    ends = {index for name, index in ids.items() if name not in ("mask_token", "pad_token")}
    for name in ("mask_token", "pad_token"):
        index = ids.get(name)
        if index is not None and index not in ends:
            return index
    known = ", ".join(sorted(ids)) or "none"
    raise UsageError(
        f"no token can stand for a hidden word (--objective masked, mask_token and pad_token apart from all others are "
        f"looked for, the tokenizer has {known}); use another objective"
    )


def mask_words(
    rows: Sequence[Row], mask_id: int, never_masked: set[int | None], generator: torch.Generator, *, start: int = 1
) -> tuple[list[Row], list[Row]]:
    """Return the rows with 15 % of their words, at least one, replaced by `mask_id`; and those words, else IGNORED.

    The first `start` tokens of each row are no words.
    """
    inputs, targets = [], []
    for row in rows:
        words = [place for place, token in enumerate(row) if place >= start and token not in never_masked]
        count = max(1, round(WORD_SHARE * len(words)))
        masked = {words[i] for i in torch.randperm(len(words), generator=generator)[:count].tolist()}
        inputs.append(tuple(mask_id if place in masked else token for place, token in enumerate(row)))
        targets.append(tuple(token if place in masked else IGNORED for place, token in enumerate(row)))
    return inputs, targets


def choose_cells(images: int, cells: int, generator: torch.Generator) -> Tensor:
    """Return masked_BN, True at half of each image's cells, at least one."""
    count = max(1, round(CELL_SHARE * cells))
    rank_BN = torch.rand(images, cells, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank_BN < count


def hide_cells(pixels_BCHW: Tensor, masked_BN: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the pixels with 0, the mean colour, in the masked cells; where cells end within a pixel, the nearest."""
    mask_B1RC = masked_BN.view(-1, 1, *grid).to(pixels_BCHW.dtype)
    mask_B1HW = functional.interpolate(mask_B1RC, size=pixels_BCHW.shape[-2:], mode="nearest-exact")
    return pixels_BCHW * (1 - mask_B1HW)


def cut_cells(pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return cells_BNP row by row, each as (channel, row, column); the image is resized where cells are not whole."""
    height, width = (max(1, round(side / count)) for side, count in zip(pixels_BCHW.shape[-2:], grid, strict=True))
    size = (height * grid[0], width * grid[1])
    if size != tuple(pixels_BCHW.shape[-2:]):
        pixels_BCHW = functional.interpolate(pixels_BCHW, size=size, mode="bilinear", antialias=True)
    return functional.unfold(pixels_BCHW, (height, width), stride=(height, width)).transpose(1, 2)


def normalised(cells_MP: Tensor) -> Tensor:
    """Return each cell less its mean, over its standard deviation."""
    variance_M1, mean_M1 = torch.var_mean(cells_MP, dim=-1, keepdim=True, unbiased=False)
    return (cells_MP - mean_M1) / (variance_M1 + _FLAT).sqrt()
