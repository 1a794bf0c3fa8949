"""EfficientNet-Lite's feature extractor (Tan & Le 2019; the Lite variants drop squeeze-excitation and use ReLU6).

B batch, C channels, H height, W width.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of Lite0, per stage: expansion, kernel, stride of the first block, output channels, number of blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1_280
# What the channels and the blocks of each stage are multiplied by; stem and head stay, as do the single blocks at
# both ends.
SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
_CHANNEL_STEP = 8  # channels of a stage are a multiple of this


class ConvNorm(nn.Module):
    """Convolution, batch norm and, where `activated`, ReLU6."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        self.norm.num_batches_tracked = None  # only a momentum of None would read it
        self.activation = nn.ReLU6(inplace=True) if activated else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return BCHW, the sides divided by the stride and rounded up."""
        if self.norm.training:
            weight, bias_C = self.conv.weight, None
        else:
            weight, bias_C = self.folded()
        x_BCHW, padding = self.padded(x_BCHW)
        x_BCHW = functional.conv2d(x_BCHW, weight, bias_C, self.stride, padding, groups=self.conv.groups)
        return cast("Tensor", self.activation(self.norm(x_BCHW) if self.norm.training else x_BCHW))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias_C of a convolution that does the norm's work, too.

        With fixed statistics the norm is one factor and one summand a channel: folded into the convolution it saves a
        pass over the largest tensors of the tower.
        """
        mean_C, variance_C = self.norm.running_mean, self.norm.running_var
        assert mean_C is not None and variance_C is not None, "a batch norm without statistics"
        scale_C = self.norm.weight * torch.rsqrt(variance_C + self.norm.eps)
        return self.conv.weight * scale_C[:, None, None, None], self.norm.bias - mean_C * scale_C

    def padded(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the input and the rows and columns of zeros that the convolution is to put around it.

        Together TensorFlow's SAME padding, as the weights were trained: an odd pixel goes to the end, which a
        convolution cannot do by itself.
        """
        (top, bottom), (left, right) = (self._padding(size) for size in x_BCHW.shape[-2:])
        if top == bottom and left == right:
            return x_BCHW, (top, left)
        return functional.pad(x_BCHW, (left, right, top, bottom)), (0, 0)

    def _padding(self, size: int) -> tuple[int, int]:
        """Return the pixels to add before and behind."""
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project (MobileNetV2's block)."""

    def __init__(self, channels: int, out_channels: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = ConvNorm(channels, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, out_channels, activated=False)
        self.skip = stride == 1 and channels == out_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return BCHW, the sides divided by the stride and rounded up."""
        y_BCHW = cast("Tensor", self.project(self.depthwise(self.expand(x_BCHW))))
        return x_BCHW + y_BCHW if self.skip else y_BCHW


class EfficientNetLite(nn.Module):
    """Pixels to the last feature map: a 32nd of each side, 1,280 channels.

    Lite0, 1 and 2 have 3.4, 4.1 and 4.8 million parameters.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        width, depth = SCALES[kind]
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for expansion, kernel, first_stride, lite0_channels, repeats in STAGES:
            out_channels = _scaled(lite0_channels, width)
            for index in range(repeats if repeats == 1 else math.ceil(repeats * depth)):
                stride = first_stride if index == 0 else 1
                block = InvertedResidual(channels, out_channels, expansion=expansion, kernel=kernel, stride=stride)
                self.blocks.append(block)
                channels = out_channels
        self.head = ConvNorm(channels, HEAD_CHANNELS)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the feature map, B x 1280 x H/32 x W/32."""
        x_BCHW = self.stem(pixels_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return cast("Tensor", self.head(x_BCHW))


def _scaled(channels: int, factor: float) -> int:
    """Return the scaled channels, rounded to a multiple of `_CHANNEL_STEP`, but never down by more than a tenth."""
    wanted = channels * factor
    rounded = max(_CHANNEL_STEP, int(wanted + _CHANNEL_STEP / 2) // _CHANNEL_STEP * _CHANNEL_STEP)
    return rounded + _CHANNEL_STEP if rounded < 0.9 * wanted else rounded
