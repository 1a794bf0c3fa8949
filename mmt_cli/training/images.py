"""What training sees of its images: decoded pixels, or features that a frozen tower made of them once.

B images, C channels, H height, W width, E examples, N image tokens, D width.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.errors import DataError, ImageError
from mmt_cli.inputs.image import read_image
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.presets import with_dropout
from mmt_cli.training.augment import SHORTEST_SIDE, Augmentation
from mmt_cli.training.examples import Example
from mmt_cli.training.features import FeatureWriter, Shape, feature_file, is_whole, map_features
from mmt_cli.training.records import printable
from mmt_cli.training.sequential import SequentialReader

FEATURE_BATCH = 32  # fixed: batches of other sizes can change the last bits of a feature


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Features of `done` of `total` images are in `file`; of all at once where they were `found` there."""

    done: int
    total: int
    file: Path
    found: bool


class Images:
    """The images of a data set, by index."""

    def __init__(
        self,
        examples: Sequence[Example],
        captioner: Captioner,
        augmentation: Augmentation | None = None,
        reader: SequentialReader | None = None,
    ) -> None:
        self.examples = examples
        self.captioner = captioner
        self.augmentation = augmentation
        self.reader = reader  # of the same examples; None: each is read by itself

    def prepare(self, *, keep_gaps: bool = False) -> Iterator[Prepared]:
        """Do what is to be done once before the first `load`, yielding how far it is.

        Args:
            keep_gaps: leave images that cannot be read to be told by `load`.
        """
        return iter(())

    def mirrored(self, index: int, epoch: int) -> bool:
        """Say whether the image of an example is mirrored in an epoch."""
        return self.augmentation is not None and self.augmentation.draw(epoch, index).mirrored

    def load(self, index: int, epoch: int | None = None) -> tuple[str, Tensor]:
        """Return the key and pixels_CHW of one example, read as captioning reads it; called in threads.

        Args:
            index: of the example.
            epoch: the one it is augmented for, where the images are; None: as it is.

        Raises:
            DataError: its image cannot be read; names it.
        """
        example = self.examples[index]
        try:
            if self.augmentation is None or epoch is None:
                picture = self.captioner.read(self._encoded(index, epoch))
            else:
                image = self._with_room(self._encoded(index, epoch))
                picture = self.captioner.prepare(self.augmentation.draw(epoch, index).apply(image))
            return example.key, picture.pixels_NCHW[0]
        except ImageError as error:
            what = f"{example.key}, {error}"
            advice = "mend or remove it" if epoch is None else "mend it, or allow for it with --max-errors"
            raise DataError(f"an image of the data set cannot be read ({what}); {advice}") from error

    def _encoded(self, index: int, epoch: int | None) -> bytes:
        if self.reader is None or epoch is None:
            return self.examples[index].read()
        return self.reader.read(index, epoch)

    def _with_room(self, data: bytes) -> Image:
        """Return the image large enough for the smallest crop of it to be no smaller than the model wants it."""
        size = self.captioner.preprocessing
        sides = (math.ceil(size.height / SHORTEST_SIDE), math.ceil(size.width / SHORTEST_SIDE))
        return read_image(data, draft_size=sides if size.draft else None)

    def see(self, images: Tensor) -> ImageTokens:
        """Return the image tokens, as the fusion takes it, of a batch that `load` loaded."""
        return self.captioner.model.see(images.to(self.captioner.device))

    def see_all(self, indices: Sequence[int]) -> ImageTokens:
        """Return the image tokens of these examples, for evaluation."""
        with inference(self.captioner.model):
            return self.see(torch.stack([self.load(index)[1] for index in indices]))


class FeatureImages(Images):
    """The same behind a frozen tower: each image goes through it once, and its features stay on the disk.

    Where images are mirrored, their mirror images go through it, too, and have a file of their own. In place of the
    features of an image that cannot be read stands NaN.
    """

    def prepare(self, *, keep_gaps: bool = False) -> Iterator[Prepared]:
        """Open the features' files, after running the tower over every image where there are none.

        Args:
            keep_gaps: leave images that cannot be read to be told by `load`.

        Raises:
            DataError: an image cannot be read, and no gaps are kept.
            UsageError: there is no room for a file; nothing is left of it.
        """
        if not len(self.examples):
            return
        self.keeps_gaps = keep_gaps
        self.files: dict[bool, Path] = {}  # by whether the images are mirrored
        self.features_END = yield from self._features(mirrored=False)
        if self.augmentation is not None:
            self.mirrored_END = yield from self._features(mirrored=True)

    def _features(self, *, mirrored: bool) -> Generator[Prepared, None, Tensor]:
        total = len(self.examples)
        file, shape = self._file(mirrored=mirrored)
        self.files[mirrored] = file
        if is_whole(file, shape):
            yield Prepared(done=total, total=total, file=file, found=True)
        else:
            with FeatureWriter(file, shape) as writer:
                for pixels_BCHW in self._decoded(mirrored=mirrored):
                    writer.append(self._tower(pixels_BCHW))
                    yield Prepared(done=writer.written, total=total, file=file, found=False)
        return map_features(file)

    def load(self, index: int, epoch: int | None = None) -> tuple[str, Tensor]:
        """Return the key and features_ND of one example, in some epochs of its mirror image.

        Raises:
            DataError: its image could not be read when they were made.
        """
        mirrored = epoch is not None and self.mirrored(index, epoch)
        features_ND = (self.mirrored_END if mirrored else self.features_END)[index]
        if features_ND[0, 0].isnan():
            key, _ = super().load(index, epoch)  # says why, unless it can be read by now
            advice = f"remove {printable(self.files[mirrored])}, and they are made again"
            raise DataError(f"features are missing ({key}, which could not be read when they were made); {advice}")
        return self.examples[index].key, features_ND

    def see(self, images: Tensor) -> ImageTokens:
        """Return the image tokens of features."""
        model = self.captioner.model
        grid = self._grid if model.config.vision.keeps_grid else None
        features = ImageTokens(x_BND=images.to(self.captioner.device, torch.float32), grid=grid)
        image: ImageTokens = model.connector(features)
        return image

    def _file(self, *, mirrored: bool = False) -> tuple[Path, Shape]:
        """Return where the features are kept, and their shape."""
        model = self.captioner.model
        # Dropout is off while features are made, so its rate decides nothing.
        vision = with_dropout(model.config, 0.0).vision
        settings: dict[str, Any] = {"vision": vision.to_json(), "preprocessing": self.captioner.preprocessing.to_json()}
        if mirrored:
            settings["mirrored"] = True
        file = feature_file(model.vision, settings, self.examples)
        return file, (len(self.examples), vision.tokens_of(self._grid), vision.width)

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the tower's tokens."""
        size = self.captioner.preprocessing
        return self.captioner.model.config.vision.grid_of(size.height, size.width)

    def _decoded(self, *, mirrored: bool) -> Iterator[Tensor]:
        """Yield pixels_BCHW of all examples in order; the next batch is decoded in threads meanwhile."""
        total = len(self.examples)
        batches = [range(start, min(start + FEATURE_BATCH, total)) for start in range(0, total, FEATURE_BATCH)]
        with ThreadPoolExecutor() as decoders:
            load = partial(self._pixels, mirrored=mirrored)
            decoding = decoders.map(load, batches[0])
            for following in [*batches[1:], range(0)]:
                pixels = list(decoding)
                decoding = decoders.map(load, following)
                yield torch.stack(pixels)

    def _pixels(self, index: int, *, mirrored: bool) -> Tensor:
        """Return pixels_CHW, NaN throughout where the image cannot be read."""
        try:
            _, pixels_CHW = super().load(index)
        except DataError:
            if not self.keeps_gaps:
                raise
            size = self.captioner.preprocessing
            return torch.full((3, size.height, size.width), torch.nan)
        return pixels_CHW.flip(-1) if mirrored else pixels_CHW

    def _tower(self, pixels_BCHW: Tensor) -> Tensor:
        """Return features_BND, the tower's tokens, NaN for images that are NaN."""
        vision = self.captioner.model.vision
        with inference(vision):
            features: ImageTokens = vision(pixels_BCHW.to(self.captioner.device))
            features.x_BND[pixels_BCHW[:, 0, 0, 0].isnan()] = torch.nan  # whatever the tower makes of them
        return features.x_BND
