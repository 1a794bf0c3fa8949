"""What stands in a report: the pieces of one page of HTML, in the order in which they are written.

A page is `head`, then for each image a `card` with an `answer` for each of its captions and `CARD_END`, then `tail`.
`report.css` and `report.js` lie beside this module and are put into it.

Whatever comes from outside is text there and nothing else: it is made `printable` and escaped. The page's own policy
also lets a browser run no other script, apply no other style and load nothing.
"""

import base64
import functools
import hashlib
import html
import math
from collections.abc import Mapping
from pathlib import Path

from mmt_cli.captioning.writers import Record
from mmt_cli.errors import ImageError
from mmt_cli.inputs.printable import printable

# Below it the image did not even double the probability of the caption.
_LOW_GAIN = 1.0  # bits
# A longer text may be higher than its box, and the keyboard scrolls a box that can have the focus.
_SCROLLS = 240  # characters
# What steers nothing in a page: line ends, tabs, and the mark that Persian and Hindi words are written with.
_HARMLESS = "\n\t\u200c"
_NO_BREAK = str.maketrans(" ", "\u00a0")

_HEAD = """<!doctype html>
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
<header><h1>{title}</h1></header>
<details class="settings"><summary>Settings</summary>{settings}</details>
<div class="tools" role="search" hidden>
<label class="search">Search <input type="search" placeholder="path, caption or error" autocomplete="off"></label>
<label><input type="checkbox"> failed only</label>
<output></output>
</div>
<main>
"""
_TAIL = """</main>
<section class="summary" aria-label="Summary">{summary}</section>
<script>{script}</script>
</body>
</html>
"""
CARD_END = "</ol></figcaption></figure>\n"


def head(title: str, settings: Mapping[str, str]) -> str:
    """Return all that comes before the first card."""
    style, script = _beside("report.css"), _beside("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return _HEAD.format(policy=policy, title=_text(title), style=style, settings=_pairs(settings))


def card(record: Record, thumbnail: bytes | None) -> str:
    """Return the start of an image's card: the picture, where there is one, and the path."""
    if thumbnail is not None:
        name = record.path.rpartition("/")[2] or record.path
        data = base64.b64encode(thumbnail).decode("ascii")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="thumbnail of {_text(name)}" decoding="async">'
    else:
        picture = _text(record.error.kind.replace("_", " ")) if record.error else "no picture"
    kind = ' class="failed"' if record.error else ""
    return (
        f'<figure{kind}><div class="picture">{picture}</div>'
        f'<figcaption><p class="path">{_text(record.path)}</p><ol class="captions">'
    )


def answer(record: Record) -> str:
    """Return one caption with its figures, or why there is none."""
    if record.error:
        return f"<li>{_paragraph('error', _reason(record.path, record.error))}</li>"
    return f'<li>{_paragraph("caption", record.caption or "")}<p class="facts">{_facts(record)}</p></li>'


def tail(summary: Mapping[str, str]) -> str:
    """Return all that comes behind the last card."""
    return _TAIL.format(summary=_pairs(summary), script=_beside("report.js"))


def _reason(path: str, error: ImageError) -> str:
    return str(error).removeprefix(f"{path} ")


def _facts(record: Record) -> str:
    """Return a caption's figures as text of which each breaks no line."""
    facts = [] if record.finish_reason is None else [record.finish_reason]
    if record.tokens is not None:
        facts.append(f"{len(record.tokens):,} token{'' if len(record.tokens) == 1 else 's'}")
    if record.logprob is not None and math.isfinite(record.logprob):
        facts.append(f"log-probability {record.logprob:.2f}")
    shown = [_text(fact.translate(_NO_BREAK)) for fact in facts]
    if record.image_gain is not None and math.isfinite(record.image_gain):
        gain = f"image gain {record.image_gain:.1f} bits".translate(_NO_BREAK)
        shown.append(gain if record.image_gain >= _LOW_GAIN else f'<span class="low">{gain} (low)</span>')
    return "\u00a0· ".join(shown)


def _paragraph(kind: str, text: str) -> str:
    focus = ' tabindex="0"' if len(text) > _SCROLLS else ""
    return f'<p class="{kind}" dir="auto"{focus}>{_text(text)}</p>'


def _pairs(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(_pair(name, value) for name, value in pairs.items())}</dl>"


def _pair(name: str, value: str) -> str:
    return f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"


def _text(text: str) -> str:
    return html.escape(printable(text, keep=_HARMLESS))


@functools.cache
def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source expression that lets a browser take an inline style or script with exactly this text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
