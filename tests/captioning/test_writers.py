"""The lines that records become."""

import json
import math

import pytest

from mmt_cli.captioning.writers import Record, formatter
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
