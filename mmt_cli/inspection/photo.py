"""What a model does with one photo: preprocessing step by step, tokens, and the caption word by word."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.inputs.image import ImageFacts, describe_image
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inputs.tiling import idefics3_size
from mmt_cli.inspection.geometry import cells_of, resized
from mmt_cli.inspection.reading import Script, Word, read_words, write

_TURNS, _QUARTER_TURNS = range(2, 9), range(5, 9)  # of EXIF orientations


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of preprocessing and what it leaves.

    Attributes:
        name: what is done.
        width: of what it leaves, in pixels, cells or tokens.
        height: likewise.
        detail: more about it.
    """

    name: str
    width: int
    height: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class PhotoReading:
    """What a model did with one photo.

    Attributes:
        script: picture, prompt and caption.
        words: the caption's words; last what ends it, where something did.
        steps: from the file to the model's pixels, and to the cells of its tower.
    """

    script: Script
    words: tuple[Word, ...]
    steps: tuple[Step, ...]

    @property
    def image_tokens(self) -> int:
        """How many tokens the image takes."""
        layout = self.script.captioner.layout(self.script.picture)
        return layout.tokens * layout.tiles

    def to_json(self) -> dict[str, Any]:
        """Return everything under its name."""
        script = self.script
        return {
            "caption": script.caption.text,
            "logprob": script.caption.logprob,
            "finish_reason": script.caption.finish_reason,
            "steps": [vars(step) for step in self.steps],
            "tiles": len(script.picture),
            "image_tokens": self.image_tokens,
            "prompt_tokens": len(script.prompt.encoder_ids or script.prompt.ids),
            "words": [word_json(word) for word in self.words],
        }


def word_json(word: Word) -> dict[str, Any]:
    """Return a word's text, probability and rivals."""
    return {
        "word": word.text,
        "tokens": len(word.tokens),
        "given": word.given,
        "probability": word.probability,
        "runners_up": [{"text": text, "probability": value} for text, value in word.runners_up],
    }


def read_photo(captioner: Captioner, image: str, prompt: str | None = None) -> PhotoReading:
    """Caption a photo by the checkpoint's own defaults and return what happened on the way.

    Args:
        captioner: the model.
        image: the photo's path.
        prompt: the caption's first words, or the question.

    Raises:
        UsageError: the prompt is too long for the model.
        ModelError: there is no tokenizer.
        ImageError: the photo cannot be read.
    """
    script = write(captioner, image, prompt)
    how = captioner.preprocessing
    facts, opened = describe_image(image, draft_size=(how.height, how.width) if how.draft else None)
    steps = (*steps_of(facts, opened, script.picture), *_cells(captioner))
    return PhotoReading(script=script, words=tuple(read_words(script)), steps=steps)


def steps_of(facts: ImageFacts, opened: Image.Image, picture: Picture) -> Iterator[Step]:
    """Yield what was done to a file's image, in order.

    Args:
        facts: what the file says of itself.
        opened: its image, upright.
        picture: what the model reads.
    """
    full = (facts.width, facts.height)
    stored = opened.size[::-1] if facts.orientation in _QUARTER_TURNS else opened.size
    yield Step(name="file", width=full[0], height=full[1], detail=f"{facts.format}, {facts.mode}")
    if stored[0] * stored[1] < full[0] * full[1]:
        detail = f"at 1/{round(full[0] / stored[0])} of its size, which is enough"
        yield Step(name="decode", width=stored[0], height=stored[1], detail=detail)
    if facts.orientation in _TURNS:
        detail = f"EXIF orientation {facts.orientation}"
        yield Step(name="turn upright", width=opened.width, height=opened.height, detail=detail)
    yield from _resizing(opened, picture)
    how = picture.how
    scaling = f"x {how.rescale:.3g}, mean {_listed(how.mean)}, std {_listed(how.std)}"
    yield Step(name="scale", width=how.width, height=how.height, detail=scaling)


def _resizing(opened: Image.Image, picture: Picture) -> Iterator[Step]:
    how, (width, height) = picture.how, opened.size
    if how.tiling is not None:
        yield from _tiling(opened, picture)
        return
    if how.square_fill is not None and width != height:
        width = height = max(width, height)
        yield Step(name="pad to a square", width=width, height=height, detail=f"colour {_listed(how.square_fill)}")
    new_height, new_width = resized(width, height, how)
    yield Step(name="resize", width=new_width, height=new_height, detail=how.resample)
    if (new_height, new_width) != (how.height, how.width):
        yield Step(name="crop", width=how.width, height=how.height, detail="the centre")


def _tiling(opened: Image.Image, picture: Picture) -> Iterator[Step]:
    how = picture.how
    assert how.tiling is not None
    if how.tiling.longest_edge is not None:
        height, width = idefics3_size(opened.height, opened.width, how.tiling.longest_edge)
        yield Step(name="resize", width=width, height=height, detail=how.resample)
    if not picture.rows:
        yield Step(name="resize", width=how.width, height=how.height, detail=f"{how.resample}, kept whole")
        return
    width, height = picture.columns * how.width, picture.rows * how.height
    yield Step(name="stretch to tiles", width=width, height=height, detail=how.resample)
    detail = f"{picture.rows} rows of {picture.columns} tiles{', and the whole as one' if picture.thumbnail else ''}"
    yield Step(name="cut", width=how.width, height=how.height, detail=detail)


def _cells(captioner: Captioner) -> Iterator[Step]:
    """Yield how a tile's tokens lie in it."""
    config, how = captioner.model.config, captioner.preprocessing
    cells = cells_of(config, how)
    count = config.image_shape(how.height, how.width)[1]
    if cells is None:
        yield Step(name="cells", width=count, height=1, detail="merged tokens, in no rows and columns")
        return
    extra = f" and {cells.extra} beside them" if cells.extra else ""
    detail = f"{cells.rows * cells.columns}{extra}, of width {config.image_width}"
    yield Step(name="cells", width=cells.columns, height=cells.rows, detail=detail)


def _listed(numbers: tuple[float, ...]) -> str:
    """Return one number where all are the same."""
    return ", ".join(f"{number:.4g}" for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))
