"""Lists of images in one file: tables, COCO captions, Karpathy's splits, LLaVA's conversations."""

import csv
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmt_cli.errors import DataError
from mmt_cli.training.data import open_dataset
from mmt_cli.training.examples import Example


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with images a.jpg and sub/b.jpg, beside which `outside.jpg` lies."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "sub/b.jpg").write_bytes(b"b")
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    return folder


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def found(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Return image bytes and captions of each example."""
    return [(example.read().decode(), example.captions) for example in open_dataset([path], **options)]


def problem(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset([path], **options)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message
    assert len(message) < 1000
    return message


# Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,caption\na.jpg,one\nsub/b.jpg,two\na.jpg,three\n"),
        ("t.CSV", "\ufeffid,Caption , File Name\r\n1,one,a.jpg\r\n2,two,sub/b.jpg\r\n3,three, a.jpg \r\n"),
        ("t.tsv", "text\tfilepath\none\ta.jpg\ntwo\tsub/b.jpg\nthree\ta.jpg"),
        ("t.csv", "image_name| comment_number| comment\na.jpg| 0| one\n\nsub/b.jpg| 0| two\na.jpg| 1| three\n"),
        ("t.csv", 'path;"sentence"\na.jpg;"one"\n"sub/b.jpg";two\na.jpg;three\n'),
    ],
    ids=["comma", "order-bom-crlf", "tab", "flickr30k", "semicolon"],
)
def test_rows_of_an_image_are_one_example_in_the_order_of_its_first(photos: Path, name: str, text: str) -> None:
    assert found(write(photos, name, text)) == [("a", ("one", "three")), ("b", ("two",))]


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t")])
def test_quoted_cells_hold_separators_quotes_and_newlines(photos: Path, name: str, separator: str) -> None:
    rows = [["image", "caption"], ["a.jpg", 'a "red"\nball, on\ta\r\nbox'], ["sub/b.jpg", '"Hi"'], ["a.jpg", "end"]]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(rows)
    path = write(photos, name, text.getvalue())
    assert found(path) == [("a", ('a "red" ball, on a box', "end")), ("b", ('"Hi"',))]


@pytest.mark.parametrize(
    ("rows", "line", "words"),
    [
        ("a.jpg,a red, round ball", 2, "has 3 cells, and the first row 2"),
        ("a.jpg", 2, "has 1 cells, and the first row 2"),
        ("a.jpg,  ", 2, "has an empty caption"),
        (",a ball", 2, "names no image"),
        ('a.jpg,"a ""red""\nball"\nmissing.jpg,one', 4, "names missing.jpg, which is not a file there"),
        ("../outside.jpg,one", 2, "outside the data folder"),
        ("sub/../../outside.jpg,one", 2, "outside the data folder"),
        ("sub/../a.jpg,one", 2, "outside the data folder"),
        ("/etc/passwd,one", 2, "outside the data folder"),
        ("link/outside.jpg,one", 2, "outside the data folder"),
        ("https://example.org/a.jpg,one", 2, "a URL"),
        ("s3://a.jpg,one", 2, "a URL"),
        ('a.jpg,"one" more', 2, "is not a row of cells"),
        ('a.jpg,one\na.jpg,"no end', 3, "is not a row of cells (unexpected end of data)"),
        ("a.jpg,caf\udce9", 2, "is not UTF-8"),
        ("a.jpg," + "a" * 100_001, 2, "100001 characters"),
        ("a.jpg," + "a" * 200_000, 2, "field larger than field limit"),
        ("a\x1b[31m.jpg,one", 2, "names a\\x1b[31m.jpg, which"),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) < 30 and value.isprintable() else "",
)
def test_a_row_that_is_not_right_is_named_by_its_line(photos: Path, rows: str, line: int, words: str) -> None:
    (photos / "link").symlink_to(photos.parent)
    (photos / "s3:").mkdir()
    (photos / "s3:/a.jpg").write_bytes(b"no URL is a path")
    message = problem(write(photos, "t.csv", f"image,caption\n{rows}\n".encode(errors="surrogateescape")))
    assert f"t.csv line {line} " in message
    assert words in message


@pytest.mark.parametrize("text", ["", "\n\n", "a.jpg,a ball\n", "image,label\na.jpg,1\n", "image caption\na.jpg one\n"])
def test_a_table_without_columns_that_are_known_is_refused(photos: Path, text: str) -> None:
    assert "names no image and caption columns" in problem(write(photos, "t.csv", text))


def test_a_table_without_rows_is_refused(photos: Path) -> None:
    assert "no images in" in problem(write(photos, "t.csv", "image,caption\n"))


# One JSON file

COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "sub/b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "one"},
        {"image_id": 7, "id": 2, "caption": " two\n"},
        {"image_id": 3, "id": 3, "caption": "three"},
    ],
}


def test_coco_captions_are_gathered_by_image(photos: Path) -> None:
    assert found(write(photos, "c.json", COCO)) == [("b", ("two",)), ("a", ("one", "three"))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, 'annotations[0] has an "image_id" that no image has'),
        ({"annotations": []}, "images[0] has no captions"),
        ({"images": [*COCO["images"], {"id": 3, "file_name": "a.jpg"}]}, 'images[2] has no "id" of its own'),  # type: ignore[misc]
        ({"images": [*COCO["images"], {"id": [], "file_name": "a.jpg"}]}, 'images[2] has no "id" of its own'),  # type: ignore[misc]
        ({"images": [*COCO["images"], 5]}, "images[2] is not a JSON object but a int"),  # type: ignore[misc]
        ({"annotations": [*COCO["annotations"], None]}, "annotations[3] is not a JSON object"),  # type: ignore[misc]
        ({"annotations": [*COCO["annotations"], {"image_id": 3}]}, "images[1] has a caption that is not a string"),  # type: ignore[misc]
        ({"images": [{"id": 7, "file_name": None}, {"id": 3, "file_name": "a.jpg"}]}, "images[0] names no image"),
        ({"images": [{"id": 7, "file_name": "../outside.jpg"}, {"id": 3, "file_name": "a.jpg"}]}, "outside the data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_coco_entry_that_is_not_right_is_named(photos: Path, changes: dict[str, Any], words: str) -> None:
    assert words in problem(write(photos, "c.json", {**COCO, **changes}))


def karpathy(**splits: str) -> dict[str, Any]:
    sentences = [{"tokens": ["a"], "raw": "one ."}, {"raw": "two"}]
    images = [{"filename": "a.jpg", "split": split, "sentences": sentences} for split in splits.values()]
    images.append({"filename": "b.jpg", "filepath": "sub", "split": "val", "sentences": [{"raw": "three"}]})
    return {"images": images, "dataset": "flickr8k"}


def test_karpathy_trains_on_train_and_restval_and_scores_on_val(photos: Path) -> None:
    path = write(photos, "d.json", karpathy(first="train", second="test", third="restval"))
    assert found(path) == [("a", ("one .", "two"))] * 2
    assert found(path, split="val") == [("b", ("three",))]


def test_karpathy_images_of_other_splits_need_not_be_there(photos: Path) -> None:
    (photos / "sub/b.jpg").unlink()
    path = write(photos, "d.json", karpathy(first="train"))
    assert len(found(path)) == 1
    assert "images[1] names sub/b.jpg, which is not a file there" in problem(path, split="val")


def test_karpathy_entries_without_split_or_sentences_are_named(photos: Path) -> None:
    data = karpathy(first="train")
    data["images"] += [{"filename": "a.jpg", "sentences": []}, {"filename": "a.jpg", "split": "train"}]
    message = problem(write(photos, "d.json", data))
    assert message.startswith("2 problems")
    assert 'images[2] has no "split"' in message


def talk(question: str, answer: object = "A ball .", image: object = "a.jpg") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    more = [{"from": "human", "value": "Describe its colour."}, {"from": "gpt", "value": "Red ."}]
    return {"id": "1", "image": image, "conversations": turns + more}


@pytest.mark.parametrize(
    "question",
    [
        "<image>",
        "Render a clear and concise summary of the photo.\n<image>",
        "<image>\nWhat is this?",
        "<image>\nWrite a terse but informative summary of the picture.",
        "Can you describe the main features of this image for me?\n<image>",
        "<image>\nGive an elaborate explanation of the image you see",
        "<image>\nRelay a brief, clear account of the picture shown.",
    ],
)
def test_llava_answers_to_questions_for_a_description_are_captions(photos: Path, question: str) -> None:
    assert found(write(photos, "l.json", [talk(question)])) == [("a", ("A ball .",))]


def test_llava_answers_to_other_questions_and_talks_without_image_are_left_out(photos: Path) -> None:
    alone = {key: value for key, value in talk("Describe love.").items() if key != "image"}
    path = write(photos, "l.json", [talk("<image>\nWhat colour is the ball?"), alone, talk("<image>", "two")])
    assert found(path) == [("a", ("two",))]
    assert "no images in" in problem(write(photos, "l.json", [alone | {"conversations": []}, talk("How many?")][1:]))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (talk("<image>", image=["a.jpg", "b.jpg"]), "[1] names no image"),
        (talk("<image>", 3), "[1] has a caption that is not a string but a int"),
        (talk("<image>", image="../outside.jpg"), "outside the data folder"),
        ({"image": "a.jpg"}, "[1] does not begin with a question"),
        ({"image": "a.jpg", "conversations": [{"from": "gpt", "value": "x"}]}, "[1] does not begin with a question"),
        (["x"], "[1] is not a JSON object but a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_llava_entry_that_is_not_right_is_named(photos: Path, entry: object, words: str) -> None:
    assert words in problem(write(photos, "l.json", [talk("<image>"), entry]))


@pytest.mark.parametrize(
    "content",
    [{"images": []}, {"images": [{"file_name": "a.jpg"}]}, {"a\x1b": 1}, ["a.jpg"], [{"image": "a.jpg"}], 3, None, {}],
    ids=str,
)
def test_json_of_another_kind_is_one_line(photos: Path, content: object) -> None:
    assert "is none of the JSON files that can be read" in problem(write(photos, "x.json", content))


@pytest.mark.parametrize("content", [b"[", b"\xff[]", b"[" * 100_000, b"9" * 5000, b'{"image": "a.jpg"}\n{}'], ids=len)
def test_json_that_is_broken_is_one_line(photos: Path, content: bytes) -> None:
    message = problem(write(photos, "x.json", content))
    assert "x.json is not valid JSON" in message or "x.json is not UTF-8" in message


def test_json_without_entries_is_refused(photos: Path) -> None:
    assert "no images in" in problem(write(photos, "x.json", []))


# All lists

LISTS = {
    "l.jsonl": json.dumps({"image": "a.jpg", "caption": "one"}),
    "l.csv": "image,caption\na.jpg,one\n",
    "l.tsv": "image\tcaption\na.jpg\tone\n",
    "coco.json": json.dumps(
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "one"}]}
    ),
    "karpathy.json": json.dumps({"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}),
    "llava.json": json.dumps([talk("<image>", "one")]),
}


@pytest.mark.parametrize("name", LISTS)
def test_images_of_a_list_lie_where_the_option_says(photos: Path, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, LISTS[name])
    assert "names a.jpg, which is not a file there" in problem(path)
    (example,) = open_dataset([path], images=photos)
    assert (example.key, example.read(), example.captions) == (str(photos / "a.jpg"), b"a", ("one",))
    with pytest.raises(DataError, match="which is not a file there"):
        open_dataset([path], images=tmp_path / "nowhere")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_by_other_processes_and_from_other_folders(
    photos: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(photos, name, LISTS[name])
    monkeypatch.chdir(photos)
    examples = pickle.loads(pickle.dumps(open_dataset([name])))
    monkeypatch.chdir("/")
    assert (examples[0].key, examples[0].read(), examples.captions[0]) == ("a.jpg", b"a", ("one",))


@pytest.mark.parametrize("name", ["l.jsonl", "l.csv", "l.tsv"])
def test_a_list_that_changed_between_epochs_is_not_read_again(photos: Path, name: str) -> None:
    path = write(photos, name, LISTS[name])
    examples = open_dataset([path])
    assert examples[0].captions == ("one",)
    stamp = path.stat().st_mtime_ns
    path.write_text(LISTS[name].replace("one", "two"), encoding="utf-8")
    os.utime(path, ns=(stamp, stamp + 1))
    for read in (lambda: examples[0], lambda: examples.captions[0]):
        with pytest.raises(DataError, match="changed since it was indexed"):
            read()
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        examples[0]


def test_examples_are_a_sequence_over_all_sources(photos: Path) -> None:
    paths = [write(photos, name, text) for name, text in LISTS.items()]
    examples = open_dataset(paths)
    assert examples.lengths == [1] * 6
    assert [example.captions for example in examples] == list(examples.captions) == [("one",)] * 6
    assert examples[-1] == examples[5] == examples[4:][1]
    assert isinstance(examples[0], Example)
    with pytest.raises(IndexError):
        examples[6]


def test_memory_of_an_index_does_not_hold_the_lines(photos: Path) -> None:
    line = json.dumps({"image": "a.jpg", "caption": "word " * 200}) + "\n"
    examples = open_dataset([write(photos, "l.jsonl", line * 2000)])
    assert len(pickle.dumps(examples)) < 20 * 2000 < len(line) * 2000


@pytest.mark.slow
def test_a_million_lines_are_indexed_in_a_minute_and_little_memory(photos: Path) -> None:
    line = json.dumps({"image": "a.jpg", "caption": "A dog runs on the grass in front of a house ."}) + "\n"
    path = write(photos, "l.jsonl", line * 1_000_000)
    program = """
import resource, sys, time
from mmt_cli.training.data import open_dataset
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
assert len(open_dataset(sys.argv[1:])) == 1_000_000
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    assert seconds < 60
    assert mib < 30


def test_a_link_within_the_folder_is_followed_and_each_folder_is_listed_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "c.jpg").symlink_to("a.jpg")
    (photos / "down").symlink_to("sub")
    lines = [{"image": name, "caption": "one"} for name in ("a.jpg", "c.jpg", "down/b.jpg", "sub/b.jpg", "./a.jpg")]
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    path = write(photos, "l.jsonl", "\n".join(map(json.dumps, lines * 50)))
    assert [image for image, _ in found(path)] == ["a", "a", "b", "b", "a"] * 50
    assert len(listed) == 4


# Whatever a file holds

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.jpg"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional={name: value | json_values for name, value in fields.items()})


name = st.sampled_from(["a.jpg", "sub/b.jpg", "../outside.jpg", "/etc/passwd", "b.jpg", "\0", "\ud800"])
words = st.sampled_from(["one", " ", "describe", "\ud800"])
number = st.integers(0, 2)
turn = objects(**{"from": st.sampled_from(["human", "gpt"]), "value": words})
files = (
    objects(
        images=st.lists(objects(id=number, file_name=name) | json_values, max_size=3),
        annotations=st.lists(objects(image_id=number, caption=words) | json_values, max_size=3),
    )
    | objects(
        images=st.lists(
            objects(
                filename=name,
                filepath=st.sampled_from(["", "sub", "..", "/"]),
                split=st.sampled_from(["train", "val"]),
                sentences=st.lists(objects(raw=words) | json_values, max_size=2),
            ),
            max_size=3,
        )
    )
    | st.lists(objects(image=name, conversations=st.lists(turn | json_values, max_size=3)), max_size=3)
)
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)


def check(path: Path, photos: Path) -> None:
    """See that a file gives examples of images in its folder, or one line."""
    try:
        examples = open_dataset([path])
    except DataError:
        problem(path)
        return
    for example in examples:
        assert example.file in (photos.resolve() / "a.jpg", photos.resolve() / "sub/b.jpg")
        assert example.read() in (b"a", b"b")
        assert example.captions
        for caption in example.captions:
            assert caption == " ".join(caption.split()) != ""
            caption.encode()


@one_folder
@given(files)
def test_json_of_any_content_gives_clean_examples_or_one_line(photos: Path, content: object) -> None:
    check(write(photos, "x.json", content), photos)


cells = st.sampled_from(["a.jpg", "sub/b.jpg", "../outside.jpg", "one", '"', '"two\n', '""', "\r", "\0", " ", "\udcff"])
rows = st.lists(st.lists(cells, max_size=3).map(",".join), max_size=4).map("\n".join)


@one_folder
@given(rows | st.text(max_size=20), st.booleans())
def test_tables_of_any_content_give_clean_examples_or_one_line(photos: Path, text: str, headed: bool) -> None:
    head = "image,caption\n" if headed else ""
    check(write(photos, "x.csv", (head + text).encode(errors="surrogatepass")), photos)


@one_folder
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jpg", "sub/b.jpg"]),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(lambda t: t.split()),
        ),
        min_size=1,
    )
)
def test_a_table_that_was_written_as_rfc_4180_has_it_is_read_as_it_was(
    photos: Path, pairs: list[tuple[str, str]]
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("image", "caption"), *pairs])
    expected: dict[str, list[str]] = {}
    for image, caption in pairs:
        expected.setdefault(image, []).append(" ".join(caption.split()))
    assert [list(captions) for _, captions in found(write(photos, "t.csv", text.getvalue()))] == [*expected.values()]
