"""What `mmt inspect --image` shows: a photo on its way into the model, and its caption word by word."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmt_cli.cli import console, tables, views
from mmt_cli.cli.inspect_gates import show_gates
from mmt_cli.cli.views import Format, Lines, Sheet, View
from mmt_cli.errors import OutputError, UsageError, shown

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

    from mmt_cli.checkpoint.reference import HubOptions
    from mmt_cli.inspection.attention import Sight
    from mmt_cli.inspection.gates import GateReading
    from mmt_cli.inspection.photo import PhotoReading
    from mmt_cli.inspection.reading import Word

_END = "(end)"
_KINDS = (".png", ".html", ".htm")
_PICTURE = 26  # columns of a terminal's picture
_BETWEEN = 2  # columns
_UPPER_HALF = "▀"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a photo.

    Attributes:
        image: its path.
        prompt: the caption's first words, or the question.
        attention: the file to draw; None for none.
        chosen: layer, head and whether it is rollout whose attention is drawn.
    """

    image: str
    prompt: str | None
    attention: str | None
    chosen: tuple[int | None, int | None, bool]


def show_image(
    model: str,
    settings: Mapping[str, Any],
    hub: "HubOptions",
    wanted: Asked,
    output_format: Format,
    depth: int,
) -> None:
    """Caption a photo and show what the model does with it.

    Raises:
        UsageError: the model has random weights, there is no such layer or head, or the prompt is too long.
        ModelError: the checkpoint is missing, broken or without a tokenizer.
        ImageError: the photo cannot be read.
    """
    from mmt_cli.captioning.captioner import Captioner
    from mmt_cli.inputs.image import read_image
    from mmt_cli.inspection.attention import Choice, check_choice, look
    from mmt_cli.inspection.gates import gates_of
    from mmt_cli.inspection.photo import read_photo
    from mmt_cli.inspection.summary import summarise
    from mmt_cli.model.presets import referenced_preset

    if wanted.attention is not None:
        check_target(wanted.attention)
    if referenced_preset(model, settings) is not None:
        raise UsageError(
            f"random weights write no caption (model {shown(model)}, --image {shown(wanted.image)}); "
            "train it first, or leave --image out"
        )
    captioner = Captioner.load(model, hub=hub)
    layer, head, rollout = wanted.chosen
    choice = Choice(layer=layer, head=head, rollout=rollout)
    if wanted.attention is not None:
        check_choice(captioner.model.config, choice)
    reading = read_photo(captioner, wanted.image, wanted.prompt)
    sight = None if wanted.attention is None else look(reading.script, choice)
    gated = captioner.model.config.fusion.gate != "none" and output_format in ("table", "json")
    gates = gates_of(captioner, wanted.image, prompt=wanted.prompt) if gated else None
    more = {} if output_format != "json" else summarise(model, settings, hub).to_json(depth)
    views.show(photo_view(reading, sight, more, gates), output_format)
    if gates is not None and output_format == "table":
        console.emit("\n")
        show_gates(gates)
    if sight is not None and wanted.attention is not None:
        photo = read_image(wanted.image)
        draw(sight, photo, wanted.attention, os.path.basename(wanted.image))  # noqa: PTH119
        if output_format == "table":
            show_pictures(sight, photo)


def check_target(path: str) -> str:
    """Return how the file of `--attention` ends.

    Raises:
        UsageError: it is neither a picture nor a page.
    """
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 — Path would take `.png` for a name
    if suffix not in _KINDS:
        raise UsageError(f"attention is drawn as a picture or a page (--attention {shown(path)}); use .png or .html")
    return suffix


def photo_view(
    reading: "PhotoReading", sight: "Sight | None", more: Mapping[str, Any], gates: "GateReading | None" = None
) -> View:
    """Return preprocessing, tokens, and the words with what could have stood there.

    Args:
        reading: of the photo.
        sight: where the model looked, if that was asked for.
        more: what else the JSON object holds, before all this.
        gates: what the model's gates let through, where it has some.
    """
    found = reading.to_json() | ({} if sight is None else {"attention": sight.to_json()})
    shares = {} if sight is None else {id(one.word): one.share for one in sight.sights}
    words: Sequence[Word] = reading.words if sight is None else sight.words
    tiles, tokens = found["tiles"], found["image_tokens"]
    return View(
        title=reading.script.caption.text,
        parts=lambda: [
            _steps(reading),
            f"tiles: {tiles}, image tokens: {tokens:,}, prompt tokens: {found['prompt_tokens']:,}",
            _words(words, shares),
            *([] if sight is None else [Lines(lines=sight.notes)]),
        ],
        records=lambda: [_record(one) for one in found["words"]],
        record=lambda: {**more, "image": found, **({} if gates is None else {"gates": gates.to_json()})},
    )


def _steps(reading: "PhotoReading") -> Sheet:
    rows = [(step.name, f"{step.width} x {step.height}", step.detail) for step in reading.steps]
    return Sheet(columns=("step", "size", "how"), rows=rows, left=3)


def _words(words: "Sequence[Word]", shares: Mapping[int, float]) -> Sheet:
    columns = ("word", "instead", "probability", *(["on the photo"] if shares else []))
    rows = [
        (
            (word.text or _END) + (" (given)" if word.given else ""),
            ", ".join(f"{_plainly(text)} {tables.share(value, 1)}" for text, value in word.runners_up),
            tables.share(word.probability, 1),
            *([tables.share(shares[id(word)], 1) if id(word) in shares else ""] if shares else []),
        )
        for word in words
    ]
    return Sheet(columns=columns, rows=rows, left=2)


def _plainly(text: str) -> str:
    """Return a piece of text between quotes where it would be taken for the list's own punctuation."""
    return text if any(map(str.isalnum, text)) else f"“{text}”"


def _record(word: Mapping[str, Any]) -> dict[str, Any]:
    rivals = [f"{one['text']}:{one['probability']:.4f}" for one in word["runners_up"]]
    return {**word, "runners_up": rivals}


def draw(sight: "Sight", photo: "Image.Image", path: str, name: str) -> None:
    """Write the sheet or the page, as the file's name says.

    Raises:
        UsageError: the file cannot be there.
        OutputError: it cannot be written.
    """
    if check_target(path) == ".png":
        from mmt_cli.inspection.attention_sheet import png

        data = png(sight, photo)
    else:
        from mmt_cli.inspection.attention_page import page

        data = page(sight, photo, name).encode("utf-8")
    _write(path, data)


def _write(path: str, data: bytes) -> None:
    from mmt_cli.captioning.whole_files import is_disk_full, replace_file

    target = Path(path)
    if target.exists() and not target.is_file():
        raise UsageError(f"{shown(path)} cannot be written (it is no plain file); name another one")
    try:
        replace_file(os.path.realpath(path), data)
    except OSError as error:
        if is_disk_full(error):
            raise OutputError(f"{shown(path)} cannot be written ({error.strerror}); free some space") from None
        what = f"{shown(path)} cannot be written ({error.strerror}); check its folder and permissions"
        raise UsageError(what) from None


def show_pictures(sight: "Sight", photo: "Image.Image") -> None:
    """Draw the words' pictures on the terminal, where stdout is one that has colours."""
    if sys.stdout.isatty() and console.use_colour(sys.stdout) and sight.sights:
        console.emit("\n")
        tables.show(*_rows_of_pictures(sight, photo, tables.width()))


def _rows_of_pictures(sight: "Sight", photo: "Image.Image", width: int) -> "Iterator[Text]":
    """Yield as many pictures beside each other as there is room for, each with its word below."""
    from mmt_cli.inspection.heat import beneath, heat_of, lit

    heat = heat_of(sight, photo, max(_PICTURE, 1))
    below = beneath(heat)
    pictures = [lit(below, level) for level in heat.levels]
    side = heat.photo.width
    beside = max((width + _BETWEEN) // (side + _BETWEEN), 1)
    for start in range(0, len(pictures), beside):
        yield _row(
            pictures[start : start + beside], [one.word.text for one in sight.sights[start : start + beside]], side
        )


def _row(pictures: "Sequence[Image.Image]", words: Sequence[str], side: int) -> "Text":
    from rich.text import Text

    row = Text(no_wrap=True)
    for top in range(0, pictures[0].height, 2):
        for picture in pictures:
            row.append_tokens(_half_blocks(picture, top))
            row.append(" " * _BETWEEN)
        row.append("\n")
    for word in words:
        label = tables.cell(word)
        label.truncate(side, overflow="ellipsis", pad=True)
        row.append_text(label).append(" " * _BETWEEN)
    return row


def _half_blocks(picture: "Image.Image", top: int) -> "Iterable[tuple[str, str]]":
    """Yield two lines of pixels as one of characters: the upper one in the ink, the lower one in the ground."""
    for x in range(picture.width):
        ink = _hex(picture.getpixel((x, top)))
        ground = f" on {_hex(picture.getpixel((x, top + 1)))}" if top + 1 < picture.height else ""
        yield _UPPER_HALF, ink + ground


def _hex(pixel: Any) -> str:
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"
