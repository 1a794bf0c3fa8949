"""Many images: batches, order, failures, limits, seeds, stops. The captioner is a stand-in."""

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.job import RunOptions, Tally
from mmt_cli.captioning.run import caption_images, item_seed
from mmt_cli.captioning.writers import jsonl_line
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, TooManyFailuresError, UsageError


@dataclass
class FakeCaptioner:
    """Reads a path as itself; fails where the name says so. Names of unlike first letters may be of unlike kinds."""

    calls: list[dict] = field(default_factory=list)
    pixel_caps: set[int] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    largest_batch: int = 100
    oom: type[Exception] | Exception = MemoryError
    kinds: bool = False
    seconds: float = 0.0

    def encode_prompt(self, prompt):
        if prompt == "too long":
            raise UsageError("the prompt is too long")

    def open(self, image, *, max_pixels):
        self.pixel_caps.add(max_pixels)
        name = str(image)
        self.opened.append(name)
        if name.startswith("bad"):
            raise ImageError("truncated", f"{name} ends early")
        if name.startswith("huge"):
            raise MemoryError
        if name.startswith("bug"):
            raise KeyError(name)
        return name

    def prepare(self, image):
        return image

    def likeness(self, picture, prompt):
        if prompt == "too long":
            raise UsageError("the prompt is too long")
        return picture[0] if self.kinds else None

    def generate(self, pictures, *, prompt, options, seeds):
        if len(pictures) > self.largest_batch or (self.largest_batch == 0):
            raise self.oom
        time.sleep(self.seconds)
        self.calls.append({"pictures": list(pictures), "prompt": prompt, "options": options, "seeds": list(seeds)})
        return [[_caption(name, rank) for rank in range(options.num_captions)] for name in pictures]

    def stream(self, picture, *, prompt, options, seed):
        yield "caption "
        yield f"of {picture}"
        return _caption(picture)


def _caption(name, rank=0):
    text = f"caption of {name}" + (f" ({rank})" if rank else "")
    return SimpleNamespace(text=text, tokens=(1, 2), logprob=-0.5 - rank, finish_reason="stop")


@dataclass
class FakeSink:
    records: list = field(default_factory=list)
    events: list = field(default_factory=list)
    thumbnails: list = field(default_factory=list)

    def piece(self, item, text):
        self.events.append((item.path, text))

    def write(self, item, records, thumbnail):
        self.records += records
        self.events.append(item.path)
        self.thumbnails.append(thumbnail)

    def commit(self):
        self.events.append("commit")


def options(**changes) -> RunOptions:
    values = {"prompt": None, "generation": GenerationOptions(), "max_failures": None, "seed": 0}
    return RunOptions(**{"batch_size": 3, "max_pixels": 100, **values, **changes})


def run(names, captioner=None, stopping=None, **changes):
    sink, tally = FakeSink(), Tally()
    captioner = captioner or FakeCaptioner()
    items = (name if isinstance(name, Item) else Item(path=name) for name in names)
    error = None
    try:
        caption_images(
            captioner, items, options(**changes), model=lambda: "fake@0", sink=sink, tally=tally, stopping=stopping
        )
    except TooManyFailuresError as raised:
        error = raised
    return SimpleNamespace(records=sink.records, sink=sink, tally=tally, captioner=captioner, error=error)


def test_records_come_in_the_order_of_the_items_with_failures_in_their_place():
    names = ["a", "bad1", "b", "c", "bad2", "d", "e"]
    done = run(names)
    assert [record.path for record in done.records] == names
    assert [record.caption for record in done.records] == [
        None if name.startswith("bad") else f"caption of {name}" for name in names
    ]
    assert (done.tally.done, done.tally.failed) == (5, 2)
    assert [record.error.kind for record in done.records if record.error] == ["truncated", "truncated"]


def test_batches_hold_as_many_as_asked_for():
    done = run("abcdefg", batch_size=3)
    assert [call["pictures"] for call in done.captioner.calls] == [list("abc"), list("def"), ["g"]]


def test_a_batch_of_failures_alone_asks_the_model_nothing():
    done = run(["bad1", "bad2"], batch_size=2)
    assert done.captioner.calls == []
    assert done.tally.failed == 2


def test_a_records_fields_come_from_caption_and_options():
    (record,) = run(["a"], prompt="hello").records
    fields = json.loads(jsonl_line(record))
    ms = fields.pop("ms")
    assert ms >= 0
    assert fields == {
        "path": "a",
        "caption": "caption of a",
        "prompt": "hello",
        "tokens": [1, 2],
        "logprob": -0.5,
        "finish_reason": "stop",
        "model": "fake@0",
        "error": None,
    }


def test_failed_records_carry_prompt_and_model():
    (record,) = run(["bad"], prompt="hello").records
    assert (record.prompt, record.model, record.tokens) == ("hello", "fake@0", None)


def test_options_reach_the_captioner():
    generation = GenerationOptions(num_beams=4)
    done = run(["a"], prompt="hello", generation=generation, max_pixels=77)
    assert done.captioner.pixel_caps == {77}
    assert done.captioner.calls[0]["prompt"] == ["hello"]
    assert done.captioner.calls[0]["options"] is generation


def test_records_are_handed_over_as_soon_as_their_batch_is_done():
    events = run("abcde", batch_size=2).sink.events
    assert events == ["a", "b", "commit", "c", "d", "commit", "e", "commit"]


def test_images_are_read_ahead_but_not_far():
    captioner = FakeCaptioner()
    reached, release = threading.Event(), threading.Event()

    def names():
        for index in range(1000):
            yield f"n{index}"

    class Held(FakeSink):
        def write(self, item, records, thumbnail):
            reached.set()
            release.wait(5)
            super().write(item, records, thumbnail)

    sink = Held()
    items = (Item(path=name) for name in names())
    arguments = {"model": lambda: "m", "sink": sink, "tally": Tally()}
    worker = threading.Thread(target=caption_images, args=(captioner, items, options(batch_size=4)), kwargs=arguments)
    worker.start()
    assert reached.wait(5)
    time.sleep(0.1)
    assert 8 <= len(captioner.opened) <= 4 + 2 * 4 + 1
    release.set()
    worker.join()
    assert [record.path for record in sink.records] == list(names())


def test_a_slow_list_does_not_hold_up_what_it_has_named():
    def slow():
        yield "a"
        assert seen.wait(5), "the first image waited for the second name"
        yield "b"

    seen = threading.Event()

    class Seeing(FakeSink):
        def write(self, item, records, thumbnail):
            seen.set()
            super().write(item, records, thumbnail)

    sink = Seeing()
    items = (Item(path=name) for name in slow())
    caption_images(FakeCaptioner(), items, options(batch_size=8), model=lambda: "m", sink=sink, tally=Tally())
    assert [record.path for record in sink.records] == ["a", "b"]


def test_only_images_of_one_kind_share_a_batch_and_leave_in_order():
    names = ["a1", "b1", "a2", "c1", "b2", "a3", "bad", "a4", "c2", "b3"]
    done = run(names, FakeCaptioner(kinds=True), batch_size=3)
    assert [record.path for record in done.records] == names
    batches = [call["pictures"] for call in done.captioner.calls]
    assert batches == [["a1", "a2", "a3"], ["b1", "b2", "b3"], ["c1", "c2"], ["a4"]]


def test_what_an_image_took_is_its_reading_and_its_share_of_the_batch():
    done = run(["a", "bad", "b"], FakeCaptioner(seconds=0.1), batch_size=3)
    assert [record.ms > 40 for record in done.records] == [True, False, True]
    assert done.records[0].ms < 100
    assert done.tally.captioned >= 0.1


def test_an_items_own_prompt_goes_before_the_runs():
    done = run([Item(path="a", prompt="mine"), Item(path="b")], prompt="ours")
    assert done.captioner.calls[0]["prompt"] == ["mine", "ours"]
    assert [record.prompt for record in done.records] == ["mine", "ours"]


def test_an_items_own_prompt_that_does_not_fit_fails_that_item_alone():
    done = run([Item(path="a", prompt="too long"), Item(path="b")])
    assert [record.error and record.error.kind for record in done.records] == ["unsupported", None]


def test_several_captions_are_a_record_each_with_their_rank():
    generation = GenerationOptions(num_captions=3, num_beams=3)
    done = run(["a", "bad"], generation=generation)
    assert [(record.path, record.rank) for record in done.records] == [("a", 1), ("a", 2), ("a", 3), ("bad", None)]
    assert [record.logprob for record in done.records] == [-0.5, -1.5, -2.5, None]
    assert done.tally.done == 1


def test_prefix_and_suffix_stand_around_a_caption():
    assert run(["a"], prefix="<", suffix=">").records[0].caption == "<caption of a>"


def test_captions_are_kept_before_their_record_and_what_cannot_be_kept_fails():
    kept = []

    def keep(item, captions):
        if item.path == "b":
            raise ImageError("unreadable", "no room beside it")
        kept.append((item.path, captions))

    done = run("abc", keep=keep, prefix="<")
    assert kept == [("a", ["<caption of a"]), ("c", ["<caption of c"])]
    assert [record.error and str(record.error) for record in done.records] == [None, "no room beside it", None]
    assert (done.tally.done, done.tally.failed) == (2, 1)


def test_gains_and_thumbnails_are_made_where_they_are_asked_for():
    def gains(pictures, captions, prompts):
        return [[float(index)] for index, _ in enumerate(pictures)]

    done = run(["a", "bad", "b"], gains=gains, thumbnail=lambda image: image.encode())
    assert [record.image_gain for record in done.records] == [0.0, None, 1.0]
    assert done.sink.thumbnails == [b"a", None, b"b"]


def test_a_stream_hands_over_one_image_at_a_time_in_pieces():
    events = run(["a", "b"], stream=True).sink.events
    assert events == [("a", "caption "), ("a", "of a"), "a", "commit", ("b", "caption "), ("b", "of b"), "b", "commit"]


def test_a_stop_ends_the_run_when_the_batch_is_done():
    class Stopping:
        batches = 0

        @property
        def requested(self):
            return self.batches == 2

        @contextlib.contextmanager
        def busy(self):
            self.batches += 1
            yield

    done = run("abcdefg", stopping=Stopping(), batch_size=2)
    assert [record.path for record in done.records] == list("abcd")
    assert done.tally.stopped


def test_a_prompt_that_does_not_fit_ends_the_run_before_anything_is_read():
    captioner = FakeCaptioner()
    with pytest.raises(UsageError, match="too long"):
        run(["a"], captioner, prompt="too long")
    assert captioner.pixel_caps == set()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize(("limit", "expected"), [(0, 2), (1, 4), (2, 6)])
def test_the_run_stops_at_the_first_failure_too_many_whatever_the_batch_size(batch_size, limit, expected):
    names = ["a", "bad1", "b", "bad2", "c", "bad3", "d"]
    done = run(names, batch_size=batch_size, max_failures=limit)
    assert [record.path for record in done.records] == names[:expected]
    assert done.records[-2].caption is not None
    assert isinstance(done.error, TooManyFailuresError)
    assert f"{limit + 1} failed, --max-errors {limit}" in str(done.error)
    assert (done.tally.done, done.tally.failed) == (expected - limit - 1, limit + 1)


def test_as_many_failures_as_allowed_do_not_stop_the_run():
    done = run(["bad1", "a", "bad2", "b"], max_failures=2)
    assert done.error is None
    assert len(done.records) == 4


def test_running_out_of_memory_while_reading_fails_that_image_alone():
    done = run(["a", "huge", "b"])
    assert [record.error and record.error.kind for record in done.records] == [None, "out_of_memory", None]


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "oom", [MemoryError, OutOfMemoryError, RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(oom):
    done = run("abcde", FakeCaptioner(largest_batch=2, oom=oom), batch_size=5)
    assert [call["pictures"] for call in done.captioner.calls] == [["a", "b"], ["c", "d"], ["e"]]
    assert done.tally.batch_size == 2
    assert [record.caption for record in done.records] == [f"caption of {name}" for name in "abcde"]
    alone = [item_seed(0, name) for name in "abcde"]
    assert [seed for call in done.captioner.calls for seed in call["seeds"]] == alone


def test_an_image_that_does_not_fit_alone_fails_as_out_of_memory():
    done = run("ab", FakeCaptioner(largest_batch=0))
    assert [record.error.kind for record in done.records] == ["out_of_memory"] * 2


def test_failures_of_memory_count_against_the_limit():
    done = run("ab", FakeCaptioner(largest_batch=0), max_failures=1)
    assert isinstance(done.error, TooManyFailuresError)


def test_our_own_bugs_are_not_taken_for_bad_images():
    with pytest.raises(KeyError):
        run(["bug"])
    with pytest.raises(RuntimeError, match="shapes"):
        run("ab", FakeCaptioner(largest_batch=1, oom=RuntimeError("shapes differ")))


def test_a_seed_depends_on_the_runs_seed_and_the_path_alone():
    first = run(["x", "a", "b"], seed=5).captioner.calls[0]["seeds"]
    other = run(["b", "x"], seed=5, batch_size=1).captioner.calls
    assert [call["seeds"] for call in other] == [[first[2]], [first[0]]]
    assert len({item_seed(seed, path) for seed in range(10) for path in ("a", "b", "1a", "\udcff", "?")}) == 50
    assert all(0 <= item_seed(seed, "a") < 2**63 for seed in range(100))


def test_seeds_stay_the_same_from_version_to_version():
    assert item_seed(0, "photo.jpg") == 4203782797360402232
