"""Image and prompt → text: the Python face of the project.

B items, C channels, H height, W width in pixels.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from mmt_cli.captioning.overrides import override
from mmt_cli.captioning.stepper import build_stepper
from mmt_cli.checkpoint.load import load_generation, load_model, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import Source, open_reference
from mmt_cli.decoding.generate import generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.image import MAX_PIXELS, read_image
from mmt_cli.inputs.preprocess import Preprocessing, to_pixels
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

ImageSource = str | os.PathLike[str] | bytes | PIL.Image.Image


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption.

    Attributes:
        text: prompt and new tokens, decoded.
        tokens: ids generated after the prompt, up to and including the end token when there was one.
        logprob: sum of their natural-log probabilities under the model, before any filter or penalty.
        finish_reason: `stop` at the end token, `length` at the limit.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    finish_reason: str


class Captioner:
    """A model with all it needs to turn images and prompts into text."""

    def __init__(
        self,
        *,
        model: MultimodalTransformer,
        tokenizer: Tokenizer | None,
        preprocessing: Preprocessing,
        generation: GenerationOptions,
        source: Source | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.generation = generation
        self.source = source

    @classmethod
    def load(
        cls,
        reference: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | None = None,
    ) -> "Captioner":
        """Load a checkpoint.

        Args:
            reference: a bundled name, a folder or a `.safetensors` file.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`; auto is float32 on a CPU.
            tokenizer: a `tokenizer.json`, or a folder that holds one, for a checkpoint without.

        Raises:
            ModelError: the checkpoint is missing or cannot be loaded.
            UsageError: device or dtype do not exist here.
        """
        source = open_reference(reference)
        on = resolve_device(device)
        model = load_model(source, device=on, dtype=resolve_dtype(dtype, on))
        words = load_tokenizer(source.folder, tokenizer)
        if words is not None and words.vocab_size > source.config.text.vocab_size:
            sizes = f"tokenizer {words.vocab_size} entries, model {source.config.text.vocab_size}"
            raise ModelError(f"tokenizer and model do not fit ({sizes}); use the tokenizer it was trained with")
        return cls(
            model=model,
            tokenizer=words,
            preprocessing=load_preprocessing(source),
            generation=load_generation(source),
            source=source,
        )

    @property
    def name(self) -> str:
        """The checkpoint's name: `mini`, or its folder's name."""
        return "unsaved" if self.source is None else self.source.name

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    def fingerprint(self) -> str:
        """Return `name@` and the first 12 hex digits of the sha256 of the weights."""
        return self.name if self.source is None else self.source.fingerprint()

    def read(self, image: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """Return the preprocessed image, pixels_CHW, float32.

        Raises:
            ImageError: the image is missing, broken, of an unknown kind or larger than `max_pixels`.
        """
        size = (self.preprocessing.height, self.preprocessing.width)
        return to_pixels(read_image(image, max_pixels=max_pixels, draft_size=size), self.preprocessing)

    @property
    def image_ids(self) -> list[int]:
        """The placeholders behind the begin token whose places the image takes; none where it stands elsewhere."""
        config = self.model.config
        if config.placeholder_id is None:
            return []
        return [config.placeholder_id] * config.image_shape(self.preprocessing.height, self.preprocessing.width)[1]

    def encode_prompt(self, prompt: str | None) -> list[int]:
        """Return the ids that a caption starts from: the begin token and the prompt's, without outer white space.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: the prompt leaves no room for a word in the model's context.
        """
        ids = [self._words.bos_id, *self.image_ids, *self._words.encode((prompt or "").strip())]
        if len(ids) > self.model.config.text.max_length:
            limit = self.model.config.text.max_length
            raise UsageError(f"the prompt is too long ({len(ids)} tokens, the model's context is {limit}); shorten it")
        return ids

    @property
    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ModelError(f"no tokenizer ({self.name} has none, text needs one); give --tokenizer FILE or DIR")
        return self.tokenizer

    def generate(
        self,
        pixels: Sequence[Tensor],
        *,
        prompt: str | None = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Caption one batch of images that `read` has read.

        Args:
            pixels: pixels_CHW each.
            prompt: the caption's first words.
            options: how to decode; the checkpoint's defaults if None.
            seeds: one an image, for sampling; the images' places in the batch if None.

        Returns:
            For each image its captions, best first; one unless `options.num_captions` says more.
        """
        with inference(self.model):
            image = self.model.see(torch.stack(list(pixels)).to(self.device, self.dtype))
        return self.generate_from(image, prompt=prompt, options=options, seeds=seeds)

    def generate_from(
        self,
        image: ImageTokens,
        *,
        prompt: str | None = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Do what `generate` does for images that the model has seen already (`model.see`)."""
        prompt_ids = self.encode_prompt(prompt)
        options = self._completed(options or self.generation, len(prompt_ids))
        prompts = [prompt_ids] * len(image)
        generators = [torch.Generator().manual_seed(s) for s in seeds or range(len(image))]
        with inference(self.model):
            stepper = build_stepper(self.model, image, prompts, options.max_new_tokens)
            items = generate(stepper, prompts, options, generators)
        return [
            [
                Caption(
                    text=self._words.decode([*prompt_ids, *found.tokens]),
                    tokens=found.tokens,
                    logprob=found.logprob,
                    finish_reason=found.finish_reason,
                )
                for found in item
            ]
            for item in items
        ]

    def _completed(self, options: GenerationOptions, prompt_length: int) -> GenerationOptions:
        """Add the tokenizer's end token, and keep within the model's context."""
        # The last new token is never read back, so it needs no position.
        room = self.model.config.text.max_length - prompt_length + 1
        return dataclasses.replace(
            options,
            max_new_tokens=min(options.max_new_tokens, room),
            min_new_tokens=min(options.min_new_tokens, room),
            end_token_ids=options.end_token_ids or (self._words.eos_id,),
            suppress_tokens=(*options.suppress_tokens, *self.image_ids[:1]),
        )

    def caption(
        self, images: Sequence[ImageSource], *, prompt: str | None = None, batch_size: int = 8, **options: Any
    ) -> list[Caption]:
        """Caption images, the best caption of each.

        Args:
            images: paths, encoded bytes or PIL images.
            prompt: the caption's first words.
            batch_size: images the model reads at a time; changes no caption in float32.
            **options: fields of GenerationOptions such as `num_beams=3`.

        Raises:
            ImageError: an image cannot be read.
            UsageError: an option's value is out of bounds.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; use at least 1")
        wanted = override(self.generation, options)
        captions: list[Caption] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = [self.read(image) for image in batch]
            seeds = range(start, start + len(batch))
            captions += [best[0] for best in self.generate(pixels, prompt=prompt, options=wanted, seeds=seeds)]
        return captions


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout and gradients; afterwards each module goes back to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training
