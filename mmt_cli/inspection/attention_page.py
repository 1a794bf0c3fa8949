"""A page of HTML with a photo and its caption: whichever word is pointed at, the photo shows where the model looked.

The page is one file. Whatever comes from outside is text there and nothing else: it is made `printable` and escaped.
The page's own policy also lets a browser run no other script, apply no other style and load nothing. `attention.css`
and `attention.js` lie beside this module and are put into it.
"""

import base64
import functools
import hashlib
import html
import io
from pathlib import Path

from PIL import Image

from mmt_cli.inputs.printable import printable
from mmt_cli.inspection.attention import Sight, WordSight
from mmt_cli.inspection.heat import beneath, glow, heat_of, scale

_LARGEST = 720  # pixels of the photo's longer side
_SHRINK = 4
_BAR = (160, 12)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<p class="caption" dir="auto">{words}</p>
<div class="stage">
<div class="pictures"><img class="photo" src="{photo}" alt="{alt}"><img class="below" src="{below}" alt="" hidden>
{layers}</div>
<div class="facts">
<p class="hint">Point at a word, or step to it with the Tab key, to see where the model looked for it.</p>
{facts}
<p class="scale"><img src="{bar}" alt="dark to bright"> 0 to {top} times the attention of an even spread; one scale for
all words</p>
{notes}
</div>
</div>
</main>
<script>{script}</script>
</body>
</html>
"""


def page(sight: Sight, photo: Image.Image, name: str) -> str:
    """Return the page.

    Args:
        sight: where the model looked.
        photo: upright, RGB, as large as it is.
        name: of the photo, for its title.
    """
    heat = heat_of(sight, photo, _LARGEST)
    style, script = _beside("attention.css"), _beside("attention.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    notes = [f"{sight.script.captioner.name}: {sight.notes[0]}", *sight.notes[1:]]
    return _PAGE.format(
        policy=policy,
        title=_text(f"{name}: {sight.script.caption.text}"),
        style=style,
        words=" ".join(f'<button type="button" class="word">{_text(one.word.text)}</button>' for one in sight.sights),
        photo=_data(heat.photo, "JPEG"),
        alt=_text(name),
        below=_data(beneath(heat), "JPEG"),
        layers="\n".join(map(_layer, heat.levels)),
        facts="\n".join(map(_facts, sight.sights)),
        bar=_data(scale(*_BAR), "PNG"),
        top=f"{heat.top:.1f}",
        notes="\n".join(f'<p class="note">{_text(note)}</p>' for note in notes),
        script=script,
    )


def _layer(level: Image.Image) -> str:
    """Return a word's heat, small: it has no fine detail, and a browser enlarges it smoothly."""
    small = level.resize((max(level.width // _SHRINK, 1), max(level.height // _SHRINK, 1)), Image.Resampling.BOX)
    return f'<img class="heat" src="{_data(glow(small), "PNG")}" alt="" hidden>'


def _facts(one: WordSight) -> str:
    """Return what is said of a word: how likely it was, how much of the attention it drew, what else came close."""
    word = one.word
    whose = "given in the prompt; the model's own probability " if word.given else "probability "
    rows = "".join(
        f'<tr><td dir="auto">{_text(text)}</td><td>{100 * value:.1f}%</td></tr>' for text, value in word.runners_up
    )
    return (
        f'<section class="fact" hidden><h2 dir="auto">{_text(word.text)}</h2>'
        f"<p>{whose}{100 * word.probability:.1f}%, {100 * one.share:.0f}% of its attention on the photo</p>"
        f"<table><caption>Instead of its first piece</caption>{rows}</table></section>"
    )


def _data(picture: Image.Image, kind: str) -> str:
    out = io.BytesIO()
    if kind == "JPEG":
        picture.save(out, kind, quality=85)
    else:
        picture.save(out, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _text(text: str) -> str:
    return html.escape(printable(text))


@functools.cache
def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source expression that lets a browser take an inline style or script with exactly this text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
