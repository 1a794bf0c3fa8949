"""The lines that records become."""

import csv
import dataclasses
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.captioning.writers import Layout, Record, formatter
from mmt_cli.errors import ImageError

GOOD = Record(
    path="d/a.jpg",
    caption="a dog runs",
    prompt="a",
    tokens=(5, 6, 2),
    logprob=-1.25,
    finish_reason="stop",
    ms=12.34567,
    model="mini@0123456789ab",
)
FAILED = Record(
    path="gone.jpg", prompt=None, ms=1.0, model="mini@0123456789ab", error=ImageError("missing", "is not there; look")
)
RANKED = dataclasses.replace(GOOD, rank=2, image_gain=0.5)
KEYS = ["path", "caption", "prompt", "tokens", "logprob", "finish_reason", "ms", "model", "error"]


def jsonl(record: Record) -> str:
    return formatter("jsonl")(record)


def test_jsonl_holds_every_field_in_the_promised_order():
    line = jsonl(GOOD)
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    fields = json.loads(line)
    assert list(fields) == KEYS
    assert fields == {
        "path": "d/a.jpg",
        "caption": "a dog runs",
        "prompt": "a",
        "tokens": [5, 6, 2],
        "logprob": -1.25,
        "finish_reason": "stop",
        "ms": 12.346,
        "model": "mini@0123456789ab",
        "error": None,
    }


def test_jsonl_of_a_failure_has_nulls_and_the_error_apart():
    fields = json.loads(jsonl(FAILED))
    assert list(fields) == KEYS
    assert [fields[key] for key in ("caption", "tokens", "logprob", "finish_reason")] == [None] * 4
    assert fields["error"] == {"kind": "missing", "message": "is not there; look"}
    assert fields["ms"] == 1.0


def test_jsonl_is_ascii_without_control_bytes_whatever_it_holds():
    path = "\udcff\n\x1b[1m\x7f\u202eé.jpg"
    line = jsonl(Record(path=path, caption="[b]\t", prompt="\x00", ms=0.0, model="m"))
    assert line.isascii()
    assert line.removesuffix("\n").isprintable()
    assert "\\udcff" in line
    assert json.loads(line)["path"] == path


@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
def test_jsonl_has_no_number_that_json_lacks(logprob):
    line = jsonl(Record(path="a", caption="b", tokens=(), logprob=logprob, ms=0.0, model="m"))
    assert json.loads(line, parse_constant=pytest.fail)["logprob"] is None


def test_text_is_path_and_caption_and_nothing_for_a_failure():
    line_of = formatter("text")
    assert line_of(GOOD) == "d/a.jpg\ta dog runs\n"
    assert line_of(FAILED) == ""


def test_text_of_a_single_image_is_its_caption_as_it_is():
    line_of = formatter("text", single=True)
    odd = Record(path="a", caption="a\tb\\c", ms=0.0, model="m")
    assert line_of(odd) == "a\tb\\c\n"
    assert line_of(FAILED) == ""


def test_tsv_has_a_line_for_each_item_and_no_header():
    for single in (False, True):
        line_of = formatter("tsv", single=single)
        assert line_of(GOOD) == "d/a.jpg\ta dog runs\n"
        assert line_of(FAILED) == "gone.jpg\t\n"


@pytest.mark.parametrize("kind", ["text", "tsv"])
def test_separators_inside_fields_are_escaped_and_can_be_undone(kind):
    odd = "a\tb\nc\rd\\n\\"
    line = formatter(kind)(Record(path=odd, caption=odd, ms=0.0, model="m"))
    assert line == "a\\tb\\nc\\rd\\\\n\\\\\ta\\tb\\nc\\rd\\\\n\\\\\n"
    assert line.splitlines() == [line.removesuffix("\n")]
    undone = [field.encode().decode("unicode_escape") for field in line.removesuffix("\n").split("\t")]
    assert undone == [odd, odd]


def test_jsonl_adds_rank_and_gain_behind_the_error_where_the_run_asked_for_them():
    assert list(json.loads(jsonl(RANKED))) == KEYS
    for settings, added in (
        ({"captions_per_item": 2}, {"rank": 2}),
        ({"grounded": True}, {"image_gain": 0.5}),
        ({"captions_per_item": 2, "grounded": True}, {"rank": 2, "image_gain": 0.5}),
    ):
        line_of = formatter("jsonl", **settings)
        fields = json.loads(line_of(RANKED))
        assert list(fields) == [*KEYS, *added]
        assert fields | added == fields
        failed = json.loads(line_of(FAILED))
        assert list(failed) == [*KEYS, *added]
        assert failed | dict.fromkeys(added) == failed


@pytest.mark.parametrize("gain", [math.inf, -math.inf, math.nan])
def test_a_gain_without_end_is_nothing(gain):
    record = dataclasses.replace(GOOD, image_gain=gain)
    line = formatter("jsonl", grounded=True)(record)
    assert json.loads(line, parse_constant=pytest.fail)["image_gain"] is None
    assert formatter("csv", grounded=True)(record).endswith(",,\r\n")


def test_a_failed_image_has_an_empty_tsv_line_for_each_caption_it_was_to_have():
    assert formatter("tsv", captions_per_item=3)(FAILED) == "gone.jpg\t\n" * 3
    assert formatter("tsv", captions_per_item=3)(RANKED) == "d/a.jpg\ta dog runs\n"
    for kind in ("jsonl", "csv"):
        assert formatter(kind, captions_per_item=3)(FAILED).count("\n") == 1
    assert formatter("text", captions_per_item=3)(FAILED) == ""


def read_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_a_header_and_the_fields_of_jsonl_in_their_order():
    layout = Layout(kind="csv", captions_per_item=2, grounded=True)
    text = layout.header() + layout.lines(RANKED) + layout.lines(FAILED)
    assert text == (
        "path,caption,prompt,tokens,logprob,finish_reason,ms,model,error,rank,image_gain\r\n"
        "d/a.jpg,a dog runs,a,5 6 2,-1.25,stop,12.346,mini@0123456789ab,,2,0.5\r\n"
        "gone.jpg,,,,,,1.0,mini@0123456789ab,missing: is not there; look,,\r\n"
    )
    assert read_csv(Layout(kind="csv").header() + formatter("csv")(GOOD))[0] == KEYS


@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
def test_other_layouts_have_no_header(kind):
    assert Layout(kind=kind).header() == ""


def test_csv_of_no_tokens_and_of_numbers_without_end_is_empty():
    record = dataclasses.replace(GOOD, tokens=(), logprob=-math.inf)
    assert formatter("csv")(record) == "d/a.jpg,a dog runs,a,,,stop,12.346,mini@0123456789ab,\r\n"


@pytest.mark.parametrize("odd", ['say "hi"', "a,b", "two\nlines", "\r", "\r\n", ' "', "é\u2028\udcff", "'=1+1"])
def test_csv_keeps_what_is_in_a_caption_and_quotes_only_where_it_must(odd):
    line = formatter("csv")(Record(path=odd, caption=odd, ms=0.0, model="m"))
    [row] = read_csv(line)
    assert row[:2] == [odd, odd]
    assert line.startswith('"') == any(letter in odd for letter in '",\r\n')


@given(st.text(alphabet=st.sampled_from('ab",\r\n \t\udcff'), max_size=12))
def test_csv_is_read_back_as_it_was_written(text):
    [row] = read_csv(formatter("csv")(Record(path="x", caption=text, prompt=text, ms=0.0, model="m")))
    assert row[:3] == ["x", text, text]
