"""Image and prompt → text: the Python face of the project.

B items, C channels, H height, W width in pixels.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.overrides import override
from mmt_cli.captioning.prompts import check_prompt, find_prompting
from mmt_cli.captioning.stepper import build_stepper, pad
from mmt_cli.checkpoint.load import load_model, stored_dtype
from mmt_cli.checkpoint.parts import load_generation, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import HubOptions, Source, open_reference
from mmt_cli.decoding.generate import generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.device import resolve_device, resolve_dtype
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.image import MAX_PIXELS, read_image
from mmt_cli.inputs.preprocess import Picture, Preprocessing, normalise, to_picture
from mmt_cli.inputs.prompt import Layout, Prompt
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import Images, ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

ImageSource = str | os.PathLike[str] | bytes | PIL.Image.Image


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption's first words and the new tokens, decoded; of models that answer the answer alone.
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
        system: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.generation = generation
        self.source = source
        self.system = system

    @classmethod
    def load(
        cls,
        reference: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | None = None,
        hub: HubOptions | None = None,
    ) -> "Captioner":
        """Load a checkpoint.

        Args:
            reference: a bundled name, a folder, a `.safetensors` file or a hub id.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`; auto is float32 on a CPU.
            tokenizer: a `tokenizer.json`, or a folder that holds one, for a checkpoint without.
            hub: how hub ids are resolved.

        Raises:
            ModelError: the checkpoint is missing or cannot be loaded.
            UsageError: device or dtype do not exist here.
        """
        source = open_reference(reference, hub)
        on = resolve_device(device)
        stored = None if source.family.native else stored_dtype(source)
        model = load_model(source, device=on, dtype=resolve_dtype(dtype, on, stored))
        words = load_tokenizer(source, tokenizer)
        if source.family.native and words is not None and words.vocab_size > source.config.text.vocab_size:
            sizes = f"tokenizer {words.vocab_size} entries, model {source.config.text.vocab_size}"
            raise ModelError(f"tokenizer and model do not fit ({sizes}); use the tokenizer it was trained with")
        return cls(
            model=model,
            tokenizer=words,
            preprocessing=load_preprocessing(source),
            generation=load_generation(source),
            source=source,
        )

    def adjusted(self, *, split: bool = True, system: str | None = None) -> "Captioner":
        """Return the same model asked in another way.

        Args:
            split: whether images are cut into tiles, for models that do so.
            system: what a chat model is told before the question.

        Raises:
            UsageError: not splitting a model's images that it would not split.
        """
        if not split and self.preprocessing.tiling is None:
            raise UsageError(f"this model keeps images whole anyway (--no-split, model {self.name}); leave it out")
        return Captioner(
            model=self.model,
            tokenizer=self.tokenizer,
            preprocessing=self.preprocessing if split else self.preprocessing.without_split(),
            generation=self.generation,
            source=self.source,
            system=system,
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
        with inference(self.model):
            return self.model.see(tiles_NCHW if whole else Images(tiles_NCHW=tiles_NCHW, count_B=counts))

    def layout(self, picture: Picture | None = None) -> Layout:
        """Return how a picture stands in a prompt; without one, how a picture does that is not split."""
        tokens = self.model.config.image_shape(self.preprocessing.height, self.preprocessing.width)[1]
        if picture is None:
            return Layout(tokens=tokens)
        return Layout(tokens=tokens, rows=picture.rows, columns=picture.columns, tiles=len(picture))

    def encode_prompt(self, prompt: str | None, layout: Layout | None = None) -> Prompt:
        """Return what the model reads before it writes.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: the prompt leaves no room for a word in the model's context.
        """
        words, config = self._words, self.model.config
        found = find_prompting(self.source, config, words, self.system)(words, prompt, layout or self.layout())
        check_prompt(found, config)
        return found

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        return (self.generation.end_token_ids or (self._words.eos_id,))[0]

    @property
    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ModelError(f"no tokenizer ({self.name} has none, text needs one); give --tokenizer FILE or DIR")
        return self.tokenizer

    def generate(
        self,
        pictures: Sequence[Picture],
        *,
        prompt: str | None = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Caption one batch of images that `read` has read.

        Args:
            pictures: one an item.
            prompt: the caption's first words, or the question.
            options: how to decode; the checkpoint's defaults if None.
            seeds: one an image, for sampling; the images' places in the batch if None.

        Returns:
            For each image its captions, best first; one unless `options.num_captions` says more.
        """
        layouts = [self.layout(picture) for picture in pictures]
        return self.generate_from(self.see(pictures), prompt=prompt, options=options, seeds=seeds, layouts=layouts)

    def generate_from(
        self,
        image: ImageTokens,
        *,
        prompt: str | None = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
        layouts: Sequence[Layout] | None = None,
    ) -> list[list[Caption]]:
        """Do what `generate` does for images that the model has seen already (`see`); whole ones without `layouts`."""
        layouts = layouts or [self.layout()] * len(image)
        by_layout = {layout: self.encode_prompt(prompt, layout) for layout in dict.fromkeys(layouts)}
        prompts = [by_layout[layout] for layout in layouts]
        ids = [given.ids for given in prompts]
        options = self._completed(options or self.generation, max(map(len, ids)))
        generators = [torch.Generator().manual_seed(s) for s in seeds or range(len(image))]
        with inference(self.model):
            stepper = build_stepper(self.model, self._asked(prompts, image), ids, options.max_new_tokens)
            items = generate(stepper, ids, options, generators)
        return [
            [
                Caption(
                    text=self._words.decode([*self._first_words(given), *found.tokens]),
                    tokens=found.tokens,
                    logprob=found.logprob,
                    finish_reason=found.finish_reason,
                )
                for found in item
            ]
            for given, item in zip(prompts, items, strict=True)
        ]

    def _asked(self, prompts: Sequence[Prompt], image: ImageTokens) -> ImageTokens:
        """Return what the decoder looks at: the image, or what a prompt encoder makes of it."""
        encoder_ids = [given.encoder_ids for given in prompts if given.encoder_ids is not None]
        if not encoder_ids:
            return image
        ids_BP, valid_BP = pad(encoder_ids, image.x_BND.device)
        return self.model.ask(ids_BP, image, valid_BP=valid_BP)

    def _first_words(self, prompt: Prompt) -> Sequence[int]:
        return prompt.ids[len(prompt.ids) - prompt.shown :]

    def _completed(self, options: GenerationOptions, prompt_length: int) -> GenerationOptions:
        """Add the tokenizer's end token, and keep within the model's context."""
        options = options.for_prompt(prompt_length)
        # The last new token is never read back, so it needs no position.
        room = self.model.config.text.max_length - prompt_length + 1
        return dataclasses.replace(
            options,
            max_new_tokens=min(options.max_new_tokens, room),
            min_new_tokens=min(options.min_new_tokens, room),
            end_token_ids=options.end_token_ids or (self._words.eos_id,),
            suppress_tokens=(*options.suppress_tokens, *self._never_written),
        )

    @property
    def _never_written(self) -> tuple[int, ...]:
        """The placeholder of our own models: they can write it, but an image cannot come behind the text."""
        native = self.source is None or self.source.family.native
        placeholder_id = self.model.config.placeholder_id
        return (placeholder_id,) if native and placeholder_id is not None else ()

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
            pictures = [self.read(image) for image in batch]
            seeds = range(start, start + len(batch))
            captions += [best[0] for best in self.generate(pictures, prompt=prompt, options=wanted, seeds=seeds)]
        return captions
