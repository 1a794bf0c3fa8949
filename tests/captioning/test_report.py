"""The page of a run: how its file comes to be, what stands in it, and what a browser makes of it."""

import fcntl
import html.parser
import io
import json
import os
import select
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmt_cli.captioning.report import Report, thumbnail
from mmt_cli.captioning.report_page import answer, card, head, tail
from mmt_cli.captioning.writers import Record
from mmt_cli.errors import ImageError, OutputError, UsageError
from mmt_cli.inputs.printable import printable

PHOTOS = sorted((Path(__file__).parents[1] / "data").glob("*.jpg"))
SUMMARY = {"captioned": "14", "failed": "2", "seconds": "3.5"}
HOSTILE = (
    "</p></figcaption><script>hacked = true</script><img src=x onerror='hacked = true'>"
    '" onload="hacked = true" <style>*{display:none}</style><!-- \u202e\x1b[31m\x00 \udcff &lt;'
)


def record(path: str = "a.jpg", **fields: Any) -> Record:
    return Record(path=path, ms=1.0, model="mini@0123456789ab", **fields)


def caption(text: str, path: str = "a.jpg", **fields: Any) -> Record:
    return record(path, **{"caption": text, "tokens": (5, 6, 2), "logprob": -1.5, "finish_reason": "stop"} | fields)


def failure(path: str, message: str = "is cut off; get a whole copy of it") -> Record:
    return record(path, error=ImageError("truncated", f"{path} {message}"))


def begun(path: Path, **fields: Any) -> Report:
    report = Report(str(path), **{"title": "Captions", "settings": {"model": "mini"}} | fields)
    report.open()
    return report


def page_of(path: Path, *records: Record) -> str:
    report = begun(path)
    for one in records:
        report.add(one, None)
    report.close(SUMMARY)
    return path.read_text(encoding="utf-8")


# The file.


def test_the_page_is_there_once_it_is_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report = begun(path)
    report.add(caption("a dog runs"), None)
    assert not path.exists()
    report.close(SUMMARY)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert list(tmp_path.iterdir()) == [path]


def test_each_record_is_in_the_hidden_file_at_once(tmp_path: Path) -> None:
    report = begun(tmp_path / "page.html")
    report.add(caption("a dog runs"), None)
    [hidden] = tmp_path.iterdir()
    assert b"a dog runs" in hidden.read_bytes()
    report.abandon()


def test_a_killed_run_leaves_the_old_page_and_the_next_one_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    program = (
        "import os, signal, sys; from mmt_cli.captioning.report import Report; "
        "Report(sys.argv[1], title='x' * 100_000, settings={}).open(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert "xxx" not in page_of(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_abandoned_page_leaves_the_old_one_and_closing_it_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    report = begun(path)
    report.abandon()
    report.close(SUMMARY)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to("page.html")
    page_of(tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert "Captions" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_name_of_the_greatest_length_is_taken(tmp_path: Path) -> None:
    assert "Captions" in page_of(tmp_path / ("a" * 250 + ".html"))


def test_identity_is_that_of_the_page_which_is_there(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("old")
    report = begun(path)
    assert report.identity == (path.stat().st_dev, path.stat().st_ino)
    report.abandon()
    path.unlink()
    report = begun(path)
    before = report.identity
    report.close(SUMMARY)
    assert before == (path.stat().st_dev, path.stat().st_ino)


@pytest.mark.parametrize(
    ("name", "said"),
    [("none/page.html", "No such file"), (".", "folder"), ("pipe", "no plain file")],
)
def test_a_page_that_cannot_be_is_refused_at_once(tmp_path: Path, name: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = set(tmp_path.iterdir())
    with pytest.raises(UsageError, match=said):
        begun(tmp_path / name)
    assert set(tmp_path.iterdir()) == before


def test_the_root_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="folder"):
        begun(Path("/"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        begun(tmp_path / "page.html")


def test_two_runs_do_not_write_one_page(tmp_path: Path) -> None:
    report = begun(tmp_path / "page.html")
    with pytest.raises(UsageError, match="another run"):
        begun(tmp_path / "page.html")
    report.close(SUMMARY)
    assert "Captions" in page_of(tmp_path / "page.html")


def test_a_full_disk_is_named_and_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    program = """
        import resource, sys
        from mmt_cli.captioning.report import Report
        from mmt_cli.captioning.writers import Record
        from mmt_cli.errors import OutputError
        report = Report(sys.argv[1], title="x", settings={})
        report.open()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            for number in range(1000):
                report.add(Record(path="a.jpg", caption="x" * 1000, ms=1.0, model="m"), None)
        except OutputError as error:
            print(number, error.exit_code, error)
        report.close({})
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    number, exit_code, message = done.stdout.split(" ", 2)
    assert 10 < int(number) < 100
    assert exit_code == "2"
    assert str(path) in message
    assert "File too large" in message
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_a_page_that_cannot_be_finished_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    report = begun(folder / "page.html")
    shutil.rmtree(folder)
    with pytest.raises(OutputError, match="No such file"):
        report.close(SUMMARY)
    report.close(SUMMARY)


def test_memory_stays_flat(tmp_path: Path) -> None:
    report = begun(tmp_path / "page.html")
    tracemalloc.start()
    try:
        for number in range(300):
            report.add(caption("a dog runs", f"{number}.jpg"), bytes(7000))
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    report.close(SUMMARY)
    assert (tmp_path / "page.html").stat().st_size > 2_000_000


# What stands in it.


class Elements(html.parser.HTMLParser):
    """Elements with their attributes' names, and texts with the element they stand in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.texts: dict[str, str] = {}
        self.alts: list[str | None] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = dict(attributes).get("class") or tag
        self.tags.append((tag, tuple(name for name, _ in attributes if name != "tabindex")))
        self.alts += [value for name, value in attributes if name == "alt"]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(tag)
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._inside] = self.texts.get(self._inside, "") + data


def _page_with(text: str) -> str:
    good = caption(text, text, finish_reason=text)
    parts = (head(text, {text: text}), card(good, b"jpeg"), answer(good), card(failure(text), None))
    page = "".join((*parts, answer(failure(text, text)), tail({text: text})))
    return page.encode("utf-8").decode("utf-8")


PLAIN = Elements(_page_with("plain"))
MARKUP = st.text(st.sampled_from("<>&\"'!-/ =\ud800\udcff\u202e\r\0ap;#"))


@given(st.text(st.characters(exclude_categories=())) | MARKUP)
def test_text_from_outside_is_text_whatever_it_holds(text: str) -> None:
    found = Elements(_page_with(text))
    assert found.tags == PLAIN.tags
    shown = printable(text, keep="\n\t\u200c")
    assert found.texts.get("caption", "") == shown
    assert found.texts.get("path", "") == shown * 2
    assert found.texts.get("error", "") == shown
    assert found.texts.get("dt", "") == found.texts.get("dd", "") == shown * 2
    assert found.texts.get("h1", "") == found.texts.get("title", "") == shown
    last = text.rpartition("/")[2] or text
    assert found.alts == [f"thumbnail of {printable(last, keep=chr(10) + chr(9) + chr(0x200C))}"]


def test_captions_of_one_image_share_a_card(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", *(caption(f"dog {rank}", rank=rank) for rank in (1, 2, 3)))
    assert page.count("<figure") == 1
    assert page.count("<li>") == 3
    assert Elements(page).texts["caption"] == "dog 1dog 2dog 3"


@pytest.mark.parametrize("ranks", [(None, None), (1, 1), (2, 1)])
def test_an_image_that_is_named_twice_has_two_cards(tmp_path: Path, ranks: tuple[int | None, int | None]) -> None:
    page = page_of(tmp_path / "page.html", *(caption("a dog", rank=rank) for rank in ranks))
    assert page.count("<figure") == page.count("</figure>") == 2


def test_images_have_cards_of_their_own_whatever_their_ranks(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", caption("a dog", "a.jpg", rank=1), caption("a cat", "b.jpg", rank=2))
    assert page.count("<figure") == 2


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({}, "stop · 3 tokens · log-probability -1.50"),
        ({"tokens": (2,), "finish_reason": "loop"}, "loop · 1 token · log-probability -1.50"),
        ({"logprob": float("nan")}, "stop · 3 tokens"),
        ({"image_gain": 12.34}, "stop · 3 tokens · log-probability -1.50 · image gain 12.3 bits"),
        ({"image_gain": float("inf")}, "stop · 3 tokens · log-probability -1.50"),
    ],
)
def test_a_captions_figures_are_told(fields: dict[str, Any], facts: str) -> None:
    assert Elements(answer(caption("a dog", **fields))).texts["facts"].replace("\u00a0", " ") == facts


def test_a_caption_that_the_image_hardly_matters_to_stands_out() -> None:
    found = Elements(answer(caption("a dog", image_gain=-0.25)))
    assert found.texts["low"].replace("\u00a0", " ") == "image gain -0.2 bits (low)"
    assert "low" not in Elements(answer(caption("a dog", image_gain=1.0))).texts


def test_a_failure_says_why_and_names_the_image_once() -> None:
    found = Elements(card(failure("d/a.jpg"), None) + answer(failure("d/a.jpg")))
    assert found.texts == {"picture": "truncated", "path": "d/a.jpg", "error": "is cut off; get a whole copy of it"}
    assert found.tags[0] == ("figure", ("class",))


def test_a_long_caption_can_have_the_focus_since_its_box_scrolls() -> None:
    assert 'tabindex="0"' in answer(caption("a dog " * 100))
    assert "tabindex" not in answer(caption("a dog"))


# Thumbnails.


@pytest.mark.parametrize(
    ("size", "expected"),
    [((4000, 3000), (240, 180)), ((300, 3), (240, 2)), ((3, 9000), (1, 240)), ((50, 20), (50, 20))],
)
def test_a_thumbnail_is_240_pixels_at_most(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "teal")
    small = Image.open(io.BytesIO(thumbnail(image)))
    assert (small.format, small.size) == ("JPEG", expected)
    assert image.size == size


def test_thumbnails_of_photos_are_small_and_like_them() -> None:
    sizes = []
    for photo in PHOTOS:
        image = Image.open(photo).convert("RGB")
        data = thumbnail(image)
        sizes.append(len(data))
        small = Image.open(io.BytesIO(data))
        means = [picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) for picture in (image, small)]
        assert means[0] == pytest.approx(means[1], abs=4)
    assert sum(sizes) / len(sizes) < 8000


# A browser.


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol over two pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._commands = map(_high, os.pipe())
        self._answers, answers = map(_high, os.pipe())
        switches = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --remote-debugging-pipe "
            "--disable-background-networking --disable-component-update --disable-sync"
        )
        self._process = subprocess.Popen(
            [program, *switches.split(), f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: (os.dup2(commands, 3), os.dup2(answers, 4)),
        )
        os.close(commands)
        os.close(answers)
        self._session: dict[str, str] = {}
        self._number = 0
        self._received = b""
        self._events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters} | self._session
        data = json.dumps(command).encode() + b"\0"
        assert os.write(self._commands, data) == len(data)
        while (message := self._receive()).get("id") != self._number:
            self._events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], 60)[0], "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def visit(self, page: Path) -> None:
        self._events.clear()
        self("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """What the console would show."""
        self.evaluate("new Promise((done) => setTimeout(done, 50))")
        shown = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self._events if event["method"] in shown]

    def close(self) -> None:
        self._session = {}
        self("Browser.close")
        self._process.wait(60)
        os.close(self._commands)
        os.close(self._answers)


def _high(descriptor: int) -> int:
    """Move a descriptor out of the way of 3 and 4, which the browser reads and writes."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of sixteen images: twelve photos, two hostile, two that failed."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    report = begun(path, title=HOSTILE, settings={"prompt": HOSTILE, "model": "mini"})
    for photo in PHOTOS:
        small = thumbnail(Image.open(photo).convert("RGB"))
        for rank in (1, 2):
            report.add(caption(f"picture {rank} of {photo.stem}", f"photos/{photo.name}", rank=rank), small)
    report.add(failure("photos/Torn.png"), None)
    report.add(caption(HOSTILE, HOSTILE, finish_reason=HOSTILE), thumbnail(Image.new("RGB", (9, 900))))
    report.add(failure(HOSTILE, HOSTILE), None)
    report.add(caption("Un café " * 400, "photos/" + "long_" * 200), None)
    report.close(SUMMARY | {"where": HOSTILE})
    return path


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The browser at the page, 1280 pixels wide; the console must stay empty throughout."""
    chromium("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    chromium.visit(page)
    yield chromium
    assert chromium.complaints() == []


SHOWN = """[...document.querySelectorAll("figure")].filter(
    (card) => [card, ...card.querySelectorAll("p")].every((part) => part.checkVisibility())).length"""
COUNT = "document.querySelector('output').value"
TOP = "(name) => document.querySelector(name).getBoundingClientRect().top"


def _search(browser: Browser, text: str) -> tuple[int, str]:
    browser.evaluate(
        "document.querySelector('[type=search]').focus(); document.querySelector('[type=search]').select()"
    )
    browser("Input.insertText", text=text)
    return browser.evaluate(SHOWN), browser.evaluate(COUNT)


def test_a_browser_shows_every_card_and_decodes_every_picture(browser: Browser) -> None:
    assert browser.evaluate(SHOWN) == 16
    assert browser.evaluate(COUNT) == "16 of 16"
    decoded = "[...document.images].map((image) => image.decode().then(() => image.naturalWidth))"
    widths = browser.evaluate(f"Promise.all({decoded})")
    assert len(widths) == 13
    assert min(widths) > 0
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.querySelectorAll('main, h1, label input[type=search]').length") == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("DOG", 1),  # a caption's word, whatever its case
        ("photos/ picture", 12),  # all words must fit
        ("of  picture", 12),
        ("torn", 1),  # a path
        ("whole copy", 1),  # an error
        ("cafe\u0301", 1),  # as a Mac writes it
        ("stop", 0),  # no figures
        ("", 16),
    ],
)
def test_the_search_box_filters_as_one_types(browser: Browser, text: str, count: int) -> None:
    _search(browser, "giraffes")
    assert browser.evaluate(SHOWN) == 1
    assert _search(browser, text or " ") == (count, f"{count} of 16")


def test_the_keyboard_reaches_search_and_failures(browser: Browser) -> None:
    focus = "(document.activeElement.type ?? document.activeElement.localName)"
    reached = []
    for _ in range(3):
        browser.press("Tab", 9)
        reached.append(browser.evaluate(focus))
    assert reached == ["summary", "search", "checkbox"]
    browser.press(" ", 32, " ")
    assert (browser.evaluate(SHOWN), browser.evaluate(COUNT)) == (2, "2 of 16")
    assert _search(browser, "torn") == (1, "1 of 16")
    browser.press("Tab", 9)
    browser.press(" ", 32, " ")
    assert _search(browser, "photos") == (14, "14 of 16")


def test_hostile_text_is_inert(browser: Browser) -> None:
    assert browser.evaluate("typeof hacked") == "undefined"
    assert browser.evaluate("document.scripts.length + document.querySelectorAll('style').length") == 2
    shown = printable(HOSTILE)
    assert browser.evaluate("document.title") == shown
    assert browser.evaluate("[...document.querySelectorAll('.caption')].at(-2).textContent") == shown
    assert browser.evaluate("[...document.querySelectorAll('.error')].at(-1).textContent") == shown
    assert browser.evaluate("document.querySelector('.settings dd').textContent") == shown


def test_the_policy_lets_no_other_script_run_and_nothing_be_loaded(chromium: Browser, page: Path) -> None:
    chromium.visit(page)
    blocked = """new Promise((done) => {
        const found = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            found.push(event.effectiveDirective);
            if (found.length === 3) done(found.sort());
        });
        document.querySelector("main").insertAdjacentHTML("beforeend",
            '<img src="http://127.0.0.1:9/x.png"><img src="data:," onerror="hacked = true"><p style="color: red">');
    })"""
    assert chromium.evaluate(blocked) == ["img-src", "script-src-attr", "style-src-attr"]
    assert chromium.evaluate("typeof hacked") == "undefined"


def test_without_script_everything_is_shown_and_the_summary_is_on_top(browser: Browser, page: Path) -> None:
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.visit(page)
        assert browser.evaluate(SHOWN) == 16
        assert browser.evaluate("document.querySelector('.tools').checkVisibility()") is False
        assert browser.evaluate("document.querySelector('main').nextElementSibling.className") == "summary"
        tops = browser.evaluate(f"['h1', '.summary', '.settings', 'main'].map({TOP})")
        assert tops == sorted(tops)
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


def test_with_script_the_summary_is_on_top_for_those_who_listen(browser: Browser) -> None:
    assert browser.evaluate("document.querySelector('header').nextElementSibling.className") == "summary"
    assert browser.evaluate("document.querySelector('.summary dd').textContent") == "14"


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_sideways(browser: Browser, width: int) -> None:
    browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.evaluate("document.querySelector('details').open = true; scrollTo(0, document.body.scrollHeight)")
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    wide = "[...document.querySelectorAll('p, dd, h1')].filter((text) => text.scrollWidth > text.clientWidth)"
    assert browser.evaluate(f"{wide}.map((text) => text.textContent)") == []


def test_colours_follow_the_system_and_can_be_read(browser: Browser) -> None:
    pages = {}
    for scheme in ("light", "dark"):
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours = {
            name: browser.evaluate(f"getComputedStyle(document.querySelector('{name}')).{which}")
            for name, which in (
                ("body", "backgroundColor"),
                ("figure", "backgroundColor"),
                (".caption", "color"),
                (".path", "color"),
                (".error", "color"),
            )
        }
        pages[scheme] = colours.pop("body")
        card = colours.pop("figure")
        assert all(_contrast(card, ink) >= 4.5 for ink in colours.values()), colours
    assert pages["light"] != pages["dark"]
    browser("Emulation.setEmulatedMedia", features=[])


def _contrast(first: str, second: str) -> float:
    """Return the ratio that WCAG 2 asks 4.5 of."""
    lights = sorted((_luminance(first), _luminance(second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    levels = [int(level) / 255 for level in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
