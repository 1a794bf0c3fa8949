"""All words of a caption on one sheet, each below the photo as the model looked at it for that word."""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from mmt_cli.inspection.attention import Sight, WordSight
from mmt_cli.inspection.heat import Heat, beneath, heat_of, lit, scale
from mmt_cli.inspection.letters import cut, drawable, font, wrapped

_CELL = 240  # pixels of the longer side of each picture
_GAP, _MARGIN = 18, 32
_MOST_COLUMNS = 6
_WORDS = 46  # pixels below each picture for the word and its figures
_PAPER, _INK, _QUIET = (255, 255, 255), (24, 27, 33), (96, 104, 120)
_TITLE, _WORD, _SMALL = 30, 19, 14  # pixels
_BAR = (160, 12)


def sheet(sight: Sight, photo: Image.Image) -> Image.Image:
    """Return the sheet: caption and photo on top, then a picture a word, RGB.

    Letters that neither Pillow's own font nor one of the machine has are shown as `?`; the page of `attention_page`
    shows them all.

    Args:
        sight: where the model looked.
        photo: upright, RGB, as large as it is.
    """
    heat = heat_of(sight, photo, _CELL)
    count = len(sight.sights) + 1
    width, height = heat.photo.size
    cell = max(width, 130)
    columns = min(count, _MOST_COLUMNS)
    inner = max(columns * (cell + _GAP) - _GAP, 3 * 160)
    title = wrapped(drawable(f"“{sight.script.caption.text}”"), inner, _TITLE)
    notes = [line for note in _notes(sight) for line in wrapped(drawable(note), inner, _SMALL)]
    head = _MARGIN + len(title) * (_TITLE + 8) + 6 + len(notes) * (_SMALL + 5) + 18
    rows = math.ceil(count / columns)
    full = head + rows * (height + _WORDS + _GAP) + 34 + _MARGIN
    page = Image.new("RGB", (inner + 2 * _MARGIN, full), _PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, title, _MARGIN, _TITLE + 8, _TITLE, _INK)
    _write(draw, notes, _MARGIN + len(title) * (_TITLE + 8) + 6, _SMALL + 5, _SMALL, _QUIET)
    below = beneath(heat)
    pictures = [heat.photo, *(lit(below, level) for level in heat.levels)]
    labels = [("the photo", ""), *map(_label, sight.sights)]
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = _MARGIN + (index % columns) * (cell + _GAP)
        top = head + (index // columns) * (height + _WORDS + _GAP)
        page.paste(picture, (left + (cell - width) // 2, top))
        _caption(draw, label, left + cell // 2, top + height + 5, cell)
    _legend(page, draw, heat, full - _MARGIN - 16)
    return page


def png(sight: Sight, photo: Image.Image) -> bytes:
    """Return the sheet as a PNG file."""
    out = io.BytesIO()
    sheet(sight, photo).save(out, "PNG", optimize=True)
    return out.getvalue()


def _notes(sight: Sight) -> list[str]:
    return [f"{sight.script.captioner.name}: {sight.notes[0]}", *sight.notes[1:]]


def _label(one: WordSight) -> tuple[str, str]:
    figures = [f"{100 * one.word.probability:.0f}% likely"]
    if one.share < 0.995:
        figures.append(f"{100 * one.share:.0f}% on the photo")
    return one.word.text, ", ".join(figures)


def _caption(draw: ImageDraw.ImageDraw, label: tuple[str, str], centre: int, top: int, width: int) -> None:
    word, figures = label
    word = cut(drawable(word), width, _WORD)
    # At the baseline, so that words stand in one line whatever their letters and font.
    draw.text((centre, top + _WORD - 2), word, fill=_INK, font=font(word, _WORD), anchor="ms")
    draw.text((centre, top + _WORD + 6), figures, fill=_QUIET, font=font(figures, _SMALL), anchor="ma")


def _legend(page: Image.Image, draw: ImageDraw.ImageDraw, heat: Heat, top: int) -> None:
    """Draw the scale: from nothing to the hottest."""
    width, height = _BAR
    page.paste(scale(width, height), (_MARGIN, top))
    text = f"0 to {heat.top:.1f} times the attention of an even spread; one scale for all words"
    draw.text((_MARGIN + width + 10, top + height // 2), text, fill=_QUIET, font=font(text, _SMALL), anchor="lm")


def _write(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int, step: int, size: int, fill: tuple[int, int, int]
) -> None:
    for index, line in enumerate(lines):
        draw.text((_MARGIN, top + index * step), line, fill=fill, font=font(line, size))
