"""The space in which whole images and whole texts are compared (CLIP, Radford et al. 2021).

B batch, I images, C texts, T text tokens, N image tokens, D width, E shared width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmt_cli.model.context import ImageTokens

FIRST_LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100)


class ContrastiveHead(nn.Module):
    """Means over each side's tokens, a linear map for each, and a learned temperature."""

    def __init__(self, *, width: int, shared_width: int) -> None:
        super().__init__()
        self.image = nn.Linear(width, shared_width, bias=False)
        self.text = nn.Linear(width, shared_width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))

    def embed_image(self, image: ImageTokens) -> Tensor:
        """Return image_BE, float32, each of length 1."""
        return functional.normalize(self.image(image.x_BND.mean(dim=1)).float(), dim=-1)

    def embed_text(self, x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
        """Return text_BE, float32, each of length 1; padding, where `valid_BT` is False, counts for nothing."""
        if valid_BT is None:
            mean_BD = x_BTD.mean(dim=1)
        else:
            mean_BD = (x_BTD * valid_BT[..., None]).sum(dim=1) / valid_BT.sum(dim=1, keepdim=True)
        return functional.normalize(self.text(mean_BD).float(), dim=-1)

    def forward(self, image_IE: Tensor, text_CE: Tensor) -> Tensor:
        """Return logits_IC, float32: how well each image and each text go together, the cosine times a learned scale.

        The scale is kept at 100 or less. It is the weight that is cut, not its use: a cut use would have no gradient,
        and the weight could not come back.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=MAX_LOG_SCALE)
        # Half precision would round cosines to steps of 1/256, which the scale makes steps of 0.4.
        with torch.autocast(image_IE.device.type, enabled=False):
            return self.log_scale.float().exp() * image_IE @ text_CE.T
