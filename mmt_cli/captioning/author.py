"""Prompts and images that the model has seen → captions."""

import dataclasses
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.recording import memory_given_back
from mmt_cli.captioning.stepper import build_stepper, pad
from mmt_cli.captioning.stream import GrowingText, stepwise
from mmt_cli.decoding.generate import Generated, Stepper, generate, generate_stream
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.prompt import Prompt
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption's first words and the new tokens, decoded; of models that answer the answer alone.
        tokens: ids generated after the prompt, up to and including the end token when there was one.
        logprob: sum of their natural-log probabilities under the model, before any filter or penalty.
        finish_reason: `stop` at the end token, `loop` where it began to repeat itself, `length` at the limit.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Author:
    """A model that writes.

    Attributes:
        model: what writes.
        words: its tokenizer.
        native: whether it is one of our own. These could write their placeholder, but an image cannot come behind text.
    """

    model: MultimodalTransformer
    words: Tokenizer
    native: bool

    def write(
        self, prompts: Sequence[Prompt], image: ImageTokens, options: GenerationOptions, seeds: Sequence[int]
    ) -> list[list[Caption]]:
        """Write captions of a batch; no item's depend on the others'.

        Args:
            prompts: one an item.
            image: one an item.
            options: how to decode.
            seeds: one an item, for sampling.

        Returns:
            For each item its captions, best first: draws by their log-probability, beams by their score.

        Raises:
            UsageError: a prompt fills `options.max_length`.
        """
        written: dict[int, list[Caption]] = {}
        # How much room a prompt leaves depends on its length, so those of unlike lengths may not go together.
        for own, places in alike(self._completed(options, prompt) for prompt in prompts).items():
            given = [prompts[place] for place in places]
            seen = image if len(places) == len(prompts) else image[torch.tensor(places, device=image.x_BND.device)]
            generators = [torch.Generator().manual_seed(seeds[place]) for place in places]
            with inference(self.model), memory_given_back(self.model):
                stepper = self.stepper(given, seen, own.max_new_tokens)
                items = generate(stepper, [prompt.ids for prompt in given], own, generators)
            for place, prompt, texts in zip(places, given, items, strict=True):
                captions = [self._caption(prompt, text) for text in texts]
                written[place] = sorted(captions, key=_unlikely) if own.sampling else captions
        return [written[place] for place in range(len(prompts))]

    def stream(
        self, prompt: Prompt, see: Callable[[], ImageTokens], options: GenerationOptions, seed: int
    ) -> Generator[str, None, Caption]:
        """Write one caption, and hand out its text as it comes.

        Args:
            prompt: what it starts from.
            see: returns the image, one.
            options: how to decode, one caption.
            seed: for sampling.

        Yields:
            Pieces that make up the caption's text, cut at spaces. Beam search has nothing to hand out before its end.

        Returns:
            What `write` returns.
        """
        text, own = GrowingText(self.words), self._completed(options, prompt)
        if piece := text.add(_first_words(prompt)):
            yield piece
        steps = stepwise(self._steps(prompt, see, own, seed), lambda: inference(self.model))
        came = 0
        while True:
            try:
                [token] = next(steps)
            except StopIteration as end:
                [[found]] = end.value
                break
            came += 1
            if token is not None and (piece := text.add([token])):
                yield piece
        if piece := text.add(found.tokens[came:]) + text.rest():
            yield piece
        return self._caption(prompt, found)

    def _steps(
        self, prompt: Prompt, see: Callable[[], ImageTokens], options: GenerationOptions, seed: int
    ) -> Generator[list[int | None], None, list[list[Generated]]]:
        stepper = self.stepper([prompt], see(), options.max_new_tokens)
        return (yield from generate_stream(stepper, [prompt.ids], options, [torch.Generator().manual_seed(seed)]))

    def stepper(self, prompts: Sequence[Prompt], image: ImageTokens, max_new_tokens: int) -> Stepper:
        """Return the model behind prompts and images, one of each an item."""
        # What the decoder looks at is the image, or what a prompt encoder makes of it.
        encoder_ids = [prompt.encoder_ids for prompt in prompts if prompt.encoder_ids is not None]
        if encoder_ids:
            ids_BP, valid_BP = pad(encoder_ids, image.x_BND.device)
            image = self.model.ask(ids_BP, image, valid_BP=valid_BP)
        return build_stepper(self.model, image, [prompt.ids for prompt in prompts], max_new_tokens)

    def _completed(self, options: GenerationOptions, prompt: Prompt) -> GenerationOptions:
        """Add the tokenizer's end token, and keep within the model's context."""
        options, config = options.for_prompt(len(prompt.ids)), self.model.config
        # The last new token is never read back, so it needs no position.
        room = config.text.max_length - len(prompt.ids) + 1
        never = (config.placeholder_id,) if self.native and config.placeholder_id is not None else ()
        return dataclasses.replace(
            options,
            max_new_tokens=min(options.max_new_tokens, room),
            min_new_tokens=min(options.min_new_tokens, room),
            end_token_ids=options.end_token_ids or (self.words.eos_id,),
            suppress_tokens=(*options.suppress_tokens, *never),
        )

    def _caption(self, prompt: Prompt, found: Generated) -> Caption:
        return Caption(
            text=self.words.decode([*_first_words(prompt), *found.tokens]),
            tokens=found.tokens,
            logprob=found.logprob,
            finish_reason=found.finish_reason,
        )


def _first_words(prompt: Prompt) -> Sequence[int]:
    return prompt.ids[len(prompt.ids) - prompt.shown :]


def _unlikely(caption: Caption) -> float:
    return -caption.logprob


def alike(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Return the places in which each key stands, in order."""
    places: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places
