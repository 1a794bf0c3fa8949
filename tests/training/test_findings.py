"""What is wrong with a data set: a line a problem, and how much of it a run goes on without."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmt_cli.errors import DataError
from mmt_cli.training.data import open_dataset
from mmt_cli.training.findings import SHOWN, BrokenDataError, Findings
from mmt_cli.training.sentences import open_sentences

GOOD, BAD = {"image": "a.jpg", "caption": "one"}, {"image": "a.jpg", "caption": " "}


def lines(folder: Path, *records: dict[str, Any]) -> Path:
    (folder / "a.jpg").write_bytes(b"1")
    path = folder / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def broken(path: Path, max_errors: str | None, read: Any = open_dataset) -> BrokenDataError:
    with pytest.raises(BrokenDataError) as caught:
        read([path], findings=Findings(max_errors))
    return caught.value


def test_counts_are_of_images_and_captions_that_can_be_used(tmp_path: Path) -> None:
    findings = Findings("2")
    path = lines(
        tmp_path, GOOD, BAD, {"image": "a.jpg", "captions": ["one", "two"]}, {"image": "b.jpg", "caption": "x"}
    )
    assert len(open_dataset([path], findings=findings)) == 2
    assert (findings.images, findings.captions, findings.broken, findings.problems) == (2, 3, 2, 2)
    first, second = findings.lines
    assert "set.jsonl line 2 has an empty caption" in first
    assert "set.jsonl line 4 names b.jpg, which is not a file there" in second
    assert findings.left_out_line == "entries left out: 2 broken"


def test_nothing_wrong_leaves_nothing_to_say(tmp_path: Path) -> None:
    findings = Findings()
    open_dataset([lines(tmp_path, GOOD)], findings=findings)
    assert (findings.lines, findings.left_out_line, findings.problems) == ([], None, 0)


@pytest.mark.parametrize("limit", ["3", "100", "30%", "30.5%", "100%"])
def test_as_many_entries_as_allowed_are_left_out(tmp_path: Path, limit: str) -> None:
    path = lines(tmp_path, *[GOOD] * 7, *[BAD] * 3)
    examples = open_dataset([path], findings=Findings(limit))
    assert [example.captions for example in examples] == [("one",)] * 7


@pytest.mark.parametrize("limit", ["0", "2", "29.999%", "0%"])
def test_one_more_than_allowed_stops_the_run_with_code_4(tmp_path: Path, limit: str) -> None:
    error = broken(lines(tmp_path, *[GOOD] * 7, *[BAD] * 3), limit)
    assert error.exit_code == 4
    assert str(error).startswith(f"3 problems in the data (--max-errors {limit}), the first: ")
    assert "set.jsonl line 8 " in str(error)


def test_without_a_limit_any_problem_stops_the_run_with_code_5(tmp_path: Path) -> None:
    error = broken(lines(tmp_path, GOOD, BAD), None)
    assert error.exit_code == 5
    assert [str(error)] == error.findings.lines


def test_many_problems_are_shown_up_to_a_number_and_the_rest_is_counted(tmp_path: Path) -> None:
    shown = broken(lines(tmp_path, *[BAD] * 2000), None).findings.lines
    assert len(shown) == SHOWN + 1
    assert shown[-1] == f"and {2000 - SHOWN:,} more"
    assert f"line {SHOWN} " in shown[-2]


def test_a_source_that_cannot_be_read_is_never_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path, GOOD)
    with pytest.raises(BrokenDataError, match="cannot read") as caught:
        open_dataset([path, tmp_path / "none.tar"], findings=Findings("100%"))
    assert caught.value.exit_code == 5


def test_a_data_set_of_broken_entries_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image is left \(2 broken entries\)") as caught:
        open_dataset([lines(tmp_path, BAD, BAD)], findings=Findings("100%"))
    assert caught.value.exit_code == 5


def test_rows_of_a_table_are_left_out_one_by_one(tmp_path: Path) -> None:
    lines(tmp_path)
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,one\na.jpg,\nb.jpg,x\na.jpg,two\n", encoding="utf-8")
    findings = Findings("50%")
    examples = open_dataset([tmp_path / "t.csv"], findings=findings)
    assert list(examples.captions) == [("one", "two")]
    assert (findings.images, findings.captions, findings.broken) == (1, 2, 2)


def test_sentences_that_cannot_be_used_are_left_out_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\ntwo\n")
    findings = Findings("1")
    assert open_sentences([path], findings=findings) == ["one", "two"]
    assert "a.txt line 2 is not UTF-8" in findings.lines[0]
    assert broken(path, "0", open_sentences).exit_code == 4
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="no sentence is left"):
        open_sentences([path], findings=Findings("1"))
