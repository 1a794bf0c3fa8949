"""Text on pictures: Pillow's own font, or for letters that it lacks one that the machine has."""

import functools

from PIL import ImageFont

from mmt_cli.inputs.printable import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_OWN = ""
# Pillow looks for these in the folders of the system; first those that know most scripts.
_FACES = (
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "Hiragino Sans GB.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "FreeSans.ttf",
    "arial.ttf",
)
_LACKING = "\uffff"  # no character, so that a font draws what it draws for those that it lacks
_LONGEST = 300  # characters that are written out


def font(text: str, size: int) -> Font:
    """Return the font of `size` pixels that has most letters of a text; Pillow's own where it has them all."""
    return _font(_face(text), size)


def drawable(text: str) -> str:
    """Return a text with a question mark for every letter that its font lacks."""
    text = printable(text)
    face = _face(text)
    return "".join(c if c.isspace() or _has(face, c) else "?" for c in text)


def length(text: str, size: int) -> float:
    """Return how many pixels a text is wide."""
    return font(text, size).getlength(text)


def wrapped(text: str, width: int, size: int) -> list[str]:
    """Return lines that are no wider than `width`, broken between words and where a word alone is too wide."""
    lines = [""]
    for word in text[:_LONGEST].split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer, size) <= width:
            lines[-1] = longer
            continue
        lines += [cut(word, width, size)]
    return [line for line in lines if line] or [""]


def cut(text: str, width: int, size: int) -> str:
    """Return a text that is no wider than `width`, its end cut."""
    if length(text, size) <= width:
        return text
    while text and length(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


@functools.lru_cache(maxsize=4096)
def _face(text: str) -> str:
    letters = {c for c in text if not c.isspace()}

    def lacks(face: str) -> int:
        return sum(not _has(face, letter) for letter in letters)

    if not lacks(_OWN):
        return _OWN
    return min((_OWN, *_faces()), key=lacks)  # of equals the first


@functools.cache
def _faces() -> tuple[str, ...]:
    """Return those of the faces that the machine has."""
    found = []
    for face in _FACES:
        try:
            _font(face, 10)
        except OSError:
            continue
        found.append(face)
    return tuple(found)


@functools.cache
def _font(face: str, size: int) -> Font:
    return ImageFont.truetype(face, size) if face else ImageFont.load_default(size)


@functools.lru_cache(maxsize=4096)
def _has(face: str, letter: str) -> bool:
    font = _font(face, 16)
    return bytes(font.getmask(letter)) != bytes(font.getmask(_LACKING))
