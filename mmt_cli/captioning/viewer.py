"""Image → what the model sees of it: the half of captioning that knows no text.

B items, C channels, H height, W width in pixels, N tiles or image tokens, D width.
"""

import os
from collections.abc import Sequence

import PIL.Image
import torch

from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.recording import memory_given_back
from mmt_cli.inputs.image import MAX_PIXELS, read_image
from mmt_cli.inputs.preprocess import Picture, Preprocessing, normalise, to_picture
from mmt_cli.inputs.prompt import Layout
from mmt_cli.model.context import Images, ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

ImageSource = str | os.PathLike[str] | bytes | PIL.Image.Image


class Viewer:
    """A model with all it needs to look at images."""

    def __init__(self, model: MultimodalTransformer, preprocessing: Preprocessing) -> None:
        self.model = model
        self.preprocessing = preprocessing

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    def read(self, image: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Picture:
        """Return the image as the model reads it.

        Raises:
            ImageError: the image is missing, broken, of an unknown kind or larger than `max_pixels`.
        """
        return self.prepare(self.open(image, max_pixels=max_pixels))

    def open(self, image: ImageSource, *, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
        """Return the image as a person sees it: upright, opaque, RGB; no smaller than the model wants it.

        Raises:
            ImageError: the image is missing, broken, of an unknown kind or larger than `max_pixels`.
        """
        size = (self.preprocessing.height, self.preprocessing.width) if self.preprocessing.draft else None
        return read_image(image, max_pixels=max_pixels, draft_size=size)

    def prepare(self, image: PIL.Image.Image) -> Picture:
        """Return what the model reads of an image that `open` has opened.

        Raises:
            ImageError: it is so long and thin that resizing it would take more memory than is sane.
        """
        return to_picture(image, self.preprocessing)

    def see(self, pictures: Sequence[Picture]) -> ImageTokens:
        """Return what the model sees of a batch that `read` has read."""
        samples_NHWC = torch.cat([picture.samples_NHWC for picture in pictures]).to(self.device)
        tiles_NCHW = normalise(samples_NHWC, self.preprocessing).to(self.dtype)
        counts = tuple(map(len, pictures))
        whole = self.preprocessing.tiling is None
        with inference(self.model), memory_given_back(self.model):
            return self.model.see(tiles_NCHW if whole else Images(tiles_NCHW=tiles_NCHW, count_B=counts))

    def layout(self, picture: Picture | None = None) -> Layout:
        """Return how a picture stands in a prompt; without one, how a picture does that is not split."""
        tokens = self.model.config.image_shape(self.preprocessing.height, self.preprocessing.width)[1]
        if picture is None:
            return Layout(tokens=tokens)
        return Layout(tokens=tokens, rows=picture.rows, columns=picture.columns, tiles=len(picture))
