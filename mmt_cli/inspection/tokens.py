"""How a text becomes tokens, and the whole prompt around it as the model reads it. Reads no weight."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmt_cli.captioning.prompts import check_prompt, find_prompting
from mmt_cli.checkpoint.parts import default_preprocessing, load_preprocessing, load_tokenizer
from mmt_cli.checkpoint.reference import HubOptions, Source, open_reference
from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.image import read_image
from mmt_cli.inputs.preprocess import Preprocessing, to_picture
from mmt_cli.inputs.prompt import Layout
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import referenced_preset

Kind = Literal["text", "special", "image"]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token.

    Attributes:
        id: in the vocabulary.
        piece: as the vocabulary spells it; None for an id that it does not have.
        kind: `special` marks begin, end and the like, `image` a place that the image's tokens take.
        start: where in the text it begins, in characters; None where it stands for none of it.
        stop: where it ends.
    """

    id: int
    piece: str | None
    kind: Kind
    start: int | None = None
    stop: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text as a model reads it.

    Attributes:
        model: its name.
        text: the user's.
        tokens: of the text alone.
        prompt: of all that the decoder starts from.
        encoder_prompt: of what a prompt encoder reads; None for models without one.
        image_tokens: how many the image takes.
        tiles: how many pictures it is cut into, the whole among them.
        in_prompt: whether it takes the place of tokens in the prompt; else it stands beside the text.
        room: how many tokens the model's context has.
        specials: special tokens of the tokenizer by their roles.
    """

    model: str
    text: str
    tokens: tuple[Token, ...]
    prompt: tuple[Token, ...]
    encoder_prompt: tuple[Token, ...] | None
    image_tokens: int
    tiles: int
    in_prompt: bool
    room: int
    specials: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        encoder = self.encoder_prompt
        return {
            "model": self.model,
            "text": self.text,
            "tokens": [token.to_json() for token in self.tokens],
            "prompt": [token.to_json() for token in self.prompt],
            "encoder_prompt": None if encoder is None else [token.to_json() for token in encoder],
            "image": {"tokens": self.image_tokens, "tiles": self.tiles, "in_prompt": self.in_prompt},
            "context": self.room,
            "special_tokens": dict(self.specials),
        }


def read_tokens(
    reference: str,
    text: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    image: str | None = None,
    hub: HubOptions | None = None,
) -> Reading:
    """Tokenize a text as a model does, and put it as its family is asked.

    Args:
        reference: a bundled name, a folder, a `.safetensors` file, a hub id or `preset:NAME`.
        text: the caption's first words, or the question.
        settings: what to change in the preset.
        tokenizer: a file or folder, for a model without one.
        image: path of a photo, which decides how many tiles it is cut into; None takes one that is not cut.
        hub: how hub ids are resolved.

    Raises:
        ModelError: the checkpoint is missing or broken, or there is no tokenizer.
        UsageError: the text leaves no room in the model's context, or no such preset.
        ImageError: the photo cannot be read.
    """
    config = referenced_preset(reference, settings)
    source = None if config is not None else open_reference(reference, hub, headers_alone=True)
    if source is not None:
        name, config, words = source.name, source.config, load_tokenizer(source, tokenizer)
    else:
        name, words = reference, None if tokenizer is None else Tokenizer.load(tokenizer)
    assert config is not None
    if words is None:
        raise ModelError(f"no tokenizer ({shown(name)} has none, text needs one); give --tokenizer FILE or DIR")
    layout = _layout(source, config, image)
    asked = find_prompting(source, config, words, None)(words, text, layout)
    check_prompt(asked, config)
    ids = asked.encoder_ids
    return Reading(
        model=name,
        text=text,
        tokens=tuple(_tokens_of(words, text)),
        prompt=_named(words, asked.ids, config),
        encoder_prompt=None if ids is None else _named(words, ids, config),
        image_tokens=layout.tokens * layout.tiles,
        tiles=layout.tiles,
        in_prompt=config.placeholder_id is not None,
        room=config.text.max_length,
        specials=words.names,
    )


def _layout(source: Source | None, config: ModelConfig, image: str | None) -> Layout:
    """Return how an image stands in the prompt."""
    how: Preprocessing = default_preprocessing(config) if source is None else load_preprocessing(source)
    tokens = config.image_shape(how.height, how.width)[1]
    if image is None:
        return Layout(tokens=tokens)
    picture = to_picture(read_image(image), how)
    return Layout(tokens=tokens, rows=picture.rows, columns=picture.columns, tiles=len(picture.pixels_NCHW))


def _tokens_of(words: Tokenizer, text: str) -> list[Token]:
    """Return the tokens of a text with their places in it."""
    words.encode(text)  # turns whatever the library raises into our errors, panics among it
    encoding = words.backend.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False)
    found = zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
    special = _special_ids(words)
    return [
        Token(id=index, piece=piece, kind="special" if index in special else "text", start=start, stop=stop)
        for index, piece, (start, stop) in found
    ]


def _named(words: Tokenizer, ids: Sequence[int], config: ModelConfig) -> tuple[Token, ...]:
    special = _special_ids(words)

    def kind(index: int) -> Kind:
        if index == config.placeholder_id:
            return "image"
        return "special" if index in special else "text"

    return tuple(Token(id=index, piece=words.backend.id_to_token(index), kind=kind(index)) for index in ids)


def _special_ids(words: Tokenizer) -> set[int]:
    added = words.backend.get_added_tokens_decoder()
    named = {words.token_id(content) for content in words.names.values()}
    return {index for index, token in added.items() if token.special} | {index for index in named if index is not None}
