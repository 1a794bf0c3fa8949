"""A caption read back in the model: how likely each of its words was, and what else could have stood there.

T text tokens, L sequence, R rows that are asked for, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmt_cli.captioning.captioner import Caption, Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.run import item_seed
from mmt_cli.errors import ModelError
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.prompt import Prompt
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.fused import FusedSequence
from mmt_cli.model.fusion_config import SpliceConfig
from mmt_cli.model.transformer import MultimodalTransformer

RUNNERS_UP = 3


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a model wrote about one picture.

    Attributes:
        captioner: who wrote it.
        picture: what it was shown.
        image: what it saw of it.
        prompt: what it started from.
        caption: what it wrote.
    """

    captioner: Captioner
    picture: Picture
    image: ImageTokens
    prompt: Prompt
    caption: Caption

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens and the new ones."""
        return [*self.prompt.ids, *self.caption.tokens]

    @property
    def first(self) -> int:
        """Index of the first token that belongs to the caption and has one before it, from which it was foreseen."""
        return max(len(self.prompt.ids) - self.prompt.shown, 1)

    @property
    def ends(self) -> bool:
        """Whether the last token says that the caption is over, and is no word."""
        return self.caption.finish_reason == "stop"


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a caption, of one token or several.

    Attributes:
        text: the word; the end's is empty.
        tokens: places of its tokens, counted from the caption's first.
        given: whether all of it came with the prompt.
        probability: of those of its tokens that the model wrote, before filters and penalties; of a given word what
            the model would have given it.
        runners_up: the likeliest other tokens in the place of the first of these, as text, with their probabilities.
    """

    text: str
    tokens: tuple[int, ...]
    given: bool
    probability: float
    runners_up: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One reading of image and text together.

    Attributes:
        fused: what is read.
        rows: positions of the sequence from which a token of the caption was foreseen, in the caption's order.
    """

    fused: FusedSequence
    rows: tuple[int, ...]


def write(captioner: Captioner, image: str, prompt: str | None = None) -> Script:
    """Caption a photo as `mmt caption` does by the checkpoint's own defaults.

    Raises:
        UsageError: the prompt is too long for the model.
        ModelError: there is no tokenizer.
        ImageError: the photo cannot be read.
    """
    _words_of(captioner)
    return write_picture(captioner, captioner.read(image), prompt, seed=item_seed(0, image))


def write_picture(captioner: Captioner, picture: Picture, prompt: str | None = None, *, seed: int = 0) -> Script:
    """Do the same for a picture that `captioner.read` has read; `seed` is for models that draw their words.

    Raises:
        UsageError: the prompt is too long for the model.
        ModelError: there is no tokenizer.
    """
    _words_of(captioner)
    layout = captioner.layout(picture)
    asked = captioner.encode_prompt(prompt, layout)
    seen = captioner.see([picture])
    [[caption, *_]] = captioner.generate_from(seen, prompt=prompt, seeds=[seed], layouts=[layout])
    return Script(captioner=captioner, picture=picture, image=seen, prompt=asked, caption=caption)


def _words_of(captioner: Captioner) -> Tokenizer:
    if captioner.tokenizer is None:
        raise ModelError(f"no tokenizer ({captioner.name} has none, a caption needs one); add its tokenizer.json")
    return captioner.tokenizer


def read_words(script: Script) -> list[Word]:
    """Return the caption's words with their probabilities; last what ends it, where something did."""
    with inference(script.captioner.model):
        memory = asked(script)
        rows = [logprobs_of(script.captioner.model, one) for one in passes(script, memory)]
    return words_of(script, torch.cat(rows)) if rows else []


def asked(script: Script) -> ImageTokens:
    """Return what the text looks at: the image, or what a prompt encoder makes of it and of the prompt."""
    if script.prompt.encoder_ids is None:
        return script.image
    ids_1P = torch.tensor([script.prompt.encoder_ids], device=script.image.x_BND.device)
    return script.captioner.model.ask(ids_1P, script.image)


def passes(script: Script, image: ImageTokens) -> Iterator[Pass]:
    """Yield the readings that foresee every token of the caption: one, where a token's past does not change.

    A model that reads everything in both directions has to read anew for each token.
    """
    model, ids, device = script.captioner.model, script.ids, image.x_BND.device
    if not model.config.cacheable:
        for end in range(script.first, len(ids)):
            fused = model.fused(torch.tensor([ids[:end]], device=device), image)
            yield Pass(fused=fused, rows=(fused.readout.start,))
    elif len(ids) > script.first:
        # The last token has none behind it.
        fused = model.fused(torch.tensor([ids[:-1]], device=device), image)
        start = fused.text.start - 1
        rows = tuple(start + index for index in range(script.first, len(ids)))
        yield Pass(fused=_as_written(model, fused, len(script.prompt.ids)), rows=rows)


def logprobs_of(model: MultimodalTransformer, one: Pass) -> Tensor:
    """Return logprob_RV at a pass's rows."""
    x_1LD = model.run(one.fused)
    rows_R = torch.tensor(one.rows, device=x_1LD.device) - one.fused.readout.start
    logits_1RV: Tensor = model.head(x_1LD[:, rows_R])
    return logits_1RV[0].log_softmax(dim=-1)


def _as_written(model: MultimodalTransformer, fused: FusedSequence, prompt: int) -> FusedSequence:
    """Let only the prompt see all of itself, where what is read at once does (PaliGemma)."""
    fusion = model.config.fusion
    if not isinstance(fusion, SpliceConfig) or fusion.visibility != "prompt":
        return fused
    place_1L = torch.arange(fused.x_BLD.shape[1], device=fused.x_BLD.device)[None]
    tokens = dataclasses.replace(fused.tokens, step_BL=(place_1L - (prompt - 1)).clamp_min(0))
    return dataclasses.replace(fused, tokens=tokens, segments=())


def words_of(script: Script, logprob_RV: Tensor) -> list[Word]:
    """Return the caption's words, given what was foreseen for each of its tokens."""
    tokenizer, ids = _words_of(script.captioner), script.ids[script.first :]
    given = len(script.prompt.ids) - script.first
    texts, groups = joined(tokenizer, ids[: len(ids) - script.ends])
    if script.ends:
        texts, groups = [*texts, ""], [*groups, [len(ids) - 1]]
    return [_word(script, text, group, given, logprob_RV) for text, group in zip(texts, groups, strict=True)]


def _word(script: Script, text: str, group: Sequence[int], given: int, logprob_RV: Tensor) -> Word:
    """Return a word of some tokens, of which those before the place `given` came with the prompt."""
    tokenizer, ids = _words_of(script.captioner), script.ids[script.first :]
    new = [place for place in group if place >= given]
    counted = new or list(group)
    logprob = sum(float(logprob_RV[place, ids[place]]) for place in counted)
    return Word(
        text=text,
        tokens=tuple(group),
        given=not new,
        probability=math.exp(logprob),
        runners_up=_runners_up(tokenizer, logprob_RV[counted[0]], ids[counted[0]]),
    )


def joined(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Return the words that tokens spell, and the places of each one's tokens.

    A token belongs to the word that is the last one once it has come; what spells nothing (a blank, the first bytes of
    a character) to the word that goes on with it.
    """
    whole = tokenizer.decode(ids).split()
    groups: list[list[int]] = [[] for _ in whole]
    waiting: list[int] = []
    before = ""
    for place in range(len(ids)):
        text = tokenizer.decode(ids[: place + 1])
        waiting.append(place)
        if text != before and groups:
            groups[min(len(text.split()), len(groups)) - 1] += waiting
            waiting = []
        before = text
    if waiting and groups:
        groups[-1] += waiting
    kept = [(text, group) for text, group in zip(whole, groups, strict=True) if group]
    return [text for text, _ in kept], [group for _, group in kept]


def _runners_up(tokenizer: Tokenizer, logprob_V: Tensor, chosen: int) -> tuple[tuple[str, float], ...]:
    best = logprob_V.topk(min(RUNNERS_UP + 1, len(logprob_V)))
    found = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    others = [(piece(tokenizer, index), probability) for index, probability in found if index != chosen]
    return tuple(others[:RUNNERS_UP])


def piece(tokenizer: Tokenizer, index: int) -> str:
    """Return a token as text, special ones by their name."""
    text: str = tokenizer.backend.decode([index], skip_special_tokens=False)
    return text.strip() or repr(text)
