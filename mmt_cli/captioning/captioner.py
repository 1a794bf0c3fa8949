"""Image and prompt → text: the Python face of the project."""

import functools
from collections.abc import Generator, Hashable, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.captioning.author import Author
from mmt_cli.captioning.author import Caption as Caption  # part of the Python face, which is this module's
from mmt_cli.captioning.loading import load_parts
from mmt_cli.captioning.overrides import override
from mmt_cli.captioning.prompts import Prompts, check_prompt, encode_each, find_prompting
from mmt_cli.captioning.viewer import ImageSource, Viewer
from mmt_cli.checkpoint.reference import HubOptions, Source
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.preprocess import Picture, Preprocessing
from mmt_cli.inputs.prompt import Layout, Prompt, Prompting
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer


class Captioner(Viewer):
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
        quantize: str | None = None,
    ) -> None:
        super().__init__(model, preprocessing)
        self.tokenizer = tokenizer
        self.generation = generation
        self.source = source
        self.system = system
        self.quantize = quantize

    @classmethod
    def load(
        cls,
        reference: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | None = None,
        hub: HubOptions | None = None,
        quantize: str | None = None,
        trainable: bool = False,
    ) -> "Captioner":
        """Load a checkpoint.

        Args:
            reference: a bundled name, a folder, a `.safetensors` file or a hub id.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`; auto is float32 on a CPU.
            tokenizer: a `tokenizer.json`, or a folder that holds one, for a checkpoint without.
            hub: how hub ids are resolved.
            quantize: `int8` for weights and inputs of linear maps in 8 bits, on a CPU; `dtype` is that of the rest.
            trainable: whether it is to be trained, so that its weights stay as they are defined.

        Raises:
            ModelError: the checkpoint is missing or cannot be loaded.
            UsageError: device or dtype do not exist here, or do not go with `quantize`.
        """
        parts = load_parts(
            reference,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            hub=hub,
            quantize=quantize,
            trainable=trainable,
        )
        return cls(**vars(parts))

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
            quantize=self.quantize,
        )

    @property
    def name(self) -> str:
        """The checkpoint's name: `mini`, or its folder's name."""
        return "unsaved" if self.source is None else self.source.name

    @property
    def numbers(self) -> str:
        """What the model computes in, in words: its dtype, and that of its linear maps where it is another."""
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self.quantize is None else f"{self.quantize} and {dtype}"

    def fingerprint(self) -> str:
        """Return `name@` and the first 12 hex digits of the sha256 of the weights."""
        return self.name if self.source is None else self.source.fingerprint()

    def encode_prompt(self, prompt: str | None, layout: Layout | None = None) -> Prompt:
        """Return what the model reads before it writes.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: the prompt leaves no room for a word in the model's context.
        """
        found = self._prompting(self._words, prompt, layout or self.layout())
        check_prompt(found, self.model.config)
        return found

    @functools.cached_property
    def _prompting(self) -> Prompting:
        return find_prompting(self.source, self.model.config, self._words, self.system)

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        return (self.generation.end_token_ids or (self._words.eos_id,))[0]

    @property
    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ModelError(f"no tokenizer ({self.name} has none, text needs one); give --tokenizer FILE or DIR")
        return self.tokenizer

    @property
    def author(self) -> Author:
        """What writes for it: model and tokenizer.

        Raises:
            ModelError: the checkpoint has no tokenizer.
        """
        native = self.source is None or self.source.family.native
        return Author(model=self.model, words=self._words, native=native)

    def likeness(self, picture: Picture, prompt: str | None = None) -> Hashable:
        """Return what is equal for items that fill a batch without padding: the image's layout, the prompt's length.

        Items of unlike keys get the same captions in one batch, too; it only takes the model longer.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: the prompt leaves no room for a word in the model's context.
        """
        layout = self.layout(picture)
        given = self.encode_prompt(prompt, layout)
        return layout, len(given.ids), len(given.encoder_ids or ())

    def generate(
        self,
        pictures: Sequence[Picture],
        *,
        prompt: Prompts = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Caption one batch of images that `read` has read.

        Args:
            pictures: one an item.
            prompt: the caption's first words, or the question; or a sequence with one an item.
            options: how to decode; the checkpoint's defaults if None.
            seeds: one an image, for sampling; the images' places in the batch if None.

        Returns:
            For each image its captions, best first; one unless `options.num_captions` says more.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: a prompt does not fit, or there are not as many as images.
        """
        layouts = [self.layout(picture) for picture in pictures]
        return self.generate_from(self.see(pictures), prompt=prompt, options=options, seeds=seeds, layouts=layouts)

    def generate_from(
        self,
        image: ImageTokens,
        *,
        prompt: Prompts = None,
        options: GenerationOptions | None = None,
        seeds: Sequence[int] | None = None,
        layouts: Sequence[Layout] | None = None,
    ) -> list[list[Caption]]:
        """Do what `generate` does for images that the model has seen already (`see`); whole ones without `layouts`."""
        prompts = encode_each(prompt, layouts or [self.layout()] * len(image), self.encode_prompt)
        return self.author.write(prompts, image, options or self.generation, seeds or range(len(image)))

    def stream(
        self, picture: Picture, *, prompt: str | None = None, options: GenerationOptions | None = None, seed: int = 0
    ) -> Generator[str, None, Caption]:
        """Caption one image, and hand out the text as it comes.

        Yields:
            Pieces that make up the caption's text, cut before spaces; of beam search all that is new in one.

        Returns:
            The caption that `generate` gives.

        Raises:
            ModelError: the checkpoint has no tokenizer.
            UsageError: the prompt does not fit, or `options.num_captions` asks for several captions.
        """
        options = options or self.generation
        if options.num_captions > 1:
            raise UsageError(f"a stream is one caption (num_captions {options.num_captions}); ask for 1, or no stream")
        given = self.encode_prompt(prompt, self.layout(picture))
        return self.author.stream(given, lambda: self.see([picture]), options, seed)

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
