"""Many images: batches, order, failures, limits, seeds. The captioner is a stand-in."""

import itertools
import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from mmt_cli.captioning.run import RunOptions, Tally, caption_images, item_seed
from mmt_cli.captioning.sources import Item
from mmt_cli.captioning.writers import jsonl_line
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, TooManyFailuresError, UsageError


@dataclass
class FakeCaptioner:
    """Reads a path as itself; fails where the name says so."""

    calls: list[dict] = field(default_factory=list)
    pixel_caps: set[int] = field(default_factory=set)
    largest_batch: int = 100
    oom: type[Exception] | Exception = MemoryError

    def encode_prompt(self, prompt):
        if prompt == "too long":
            raise UsageError("the prompt is too long")

    def read(self, image, *, max_pixels):
        self.pixel_caps.add(max_pixels)
        name = str(image)
        if name.startswith("bad"):
            raise ImageError("truncated", f"{name} ends early")
        if name.startswith("huge"):
            raise MemoryError
        if name.startswith("bug"):
            raise KeyError(name)
        return name

    def generate(self, pictures, *, prompt, options, seeds):
        if len(pictures) > self.largest_batch or (self.largest_batch == 0):
            raise self.oom
        self.calls.append({"pictures": list(pictures), "prompt": prompt, "options": options, "seeds": list(seeds)})
        return [
            [SimpleNamespace(text=f"caption of {name}", tokens=(1, 2), logprob=-0.5, finish_reason="stop")]
            for name in pictures
        ]


def options(**changes) -> RunOptions:
    values = {"prompt": None, "generation": GenerationOptions(), "max_failures": None, "seed": 0}
    return RunOptions(**{"batch_size": 3, "max_pixels": 100, **values, **changes})


def run(names, captioner=None, **changes):
    records, tally = [], Tally()
    captioner = captioner or FakeCaptioner()
    items = (Item(path=name) for name in names)
    error = None
    try:
        caption_images(captioner, items, options(**changes), model=lambda: "fake@0", write=records.append, tally=tally)
    except TooManyFailuresError as raised:
        error = raised
    return SimpleNamespace(records=records, tally=tally, captioner=captioner, error=error)


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
    assert done.captioner.calls[0]["prompt"] == "hello"
    assert done.captioner.calls[0]["options"] is generation


def test_records_are_handed_over_as_soon_as_their_batch_is_done():
    asked = []
    names = (asked.append(name) or name for name in "abcdef")
    seen = []
    caption_images(
        FakeCaptioner(),
        (Item(path=name) for name in names),
        options(batch_size=2),
        model=lambda: "m",
        write=lambda record: seen.append((record.path, len(asked))),
        tally=Tally(),
    )
    assert seen == [("a", 2), ("b", 2), ("c", 4), ("d", 4), ("e", 6), ("f", 6)]


def test_milliseconds_are_the_batchs_shared_by_its_items(monkeypatch):
    ticks = itertools.count(0, 0.3)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    done = run(["a", "bad", "b"], batch_size=3)
    assert [record.ms for record in done.records] == pytest.approx([100.0] * 3)


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
    assert [call["pictures"] for call in done.captioner.calls] == [["a", "b"], ["c"], ["d", "e"]]
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
