"""What training sees of its images: decoded pixels, or features that a frozen tower made of them once.

B images, C channels, H height, W width, N image tokens, D width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner, inference
from mmt_cli.errors import DataError, ImageError
from mmt_cli.model.context import ImageTokens
from mmt_cli.training.data import Example

FEATURE_BATCH = 32


class Images:
    """The images of a data set, by index."""

    def __init__(self, examples: Sequence[Example], captioner: Captioner) -> None:
        self.examples = examples
        self.captioner = captioner

    def prepare(self) -> None:
        """Do what is to be done once before the first `load`."""

    def load(self, index: int) -> tuple[str, Tensor]:
        """Return the key and pixels_CHW of one example, read as captioning reads it; called in threads.

        Raises:
            DataError: its image cannot be read; names it.
        """
        example = self.examples[index]
        try:
            return example.key, self.captioner.read(example.read())
        except ImageError as error:
            what = f"{example.key}, {error}"
            raise DataError(f"an image of the data set cannot be read ({what}); mend or remove it") from error

    def see(self, images: Tensor) -> ImageTokens:
        """Return the image tokens, as the fusion takes it, of a batch that `load` loaded."""
        return self.captioner.model.see(images.to(self.captioner.device))

    def see_all(self, indices: Sequence[int]) -> ImageTokens:
        """Return the image tokens of these examples, for evaluation."""
        with inference(self.captioner.model):
            return self.see(torch.stack([self.load(index)[1] for index in indices]))


class FeatureImages(Images):
    """The same behind a frozen tower: each image goes through it once, and its features stay in memory."""

    def prepare(self) -> None:
        """Run the tower over every image; features_ND in bfloat16, which halves the memory they take."""
        self.features: list[Tensor] = []
        vision, device = self.captioner.model.vision, self.captioner.device
        with ThreadPoolExecutor() as decoders, torch.no_grad():
            for start in range(0, len(self.examples), FEATURE_BATCH):
                indices = range(start, min(start + FEATURE_BATCH, len(self.examples)))
                pixels = [pixels_CHW for _, pixels_CHW in decoders.map(super().load, indices)]
                features_BND: Tensor = vision(torch.stack(pixels).to(device)).x_BND
                self.features += features_BND.to("cpu", torch.bfloat16)

    def load(self, index: int) -> tuple[str, Tensor]:
        """Return the key and features_ND of one example."""
        return self.examples[index].key, self.features[index]

    def see(self, images: Tensor) -> ImageTokens:
        """Return the image tokens of features."""
        model = self.captioner.model
        features = ImageTokens(x_BND=images.to(self.captioner.device, torch.float32), grid=model.config.vision.grid)
        image: ImageTokens = model.connector(features)
        return image
