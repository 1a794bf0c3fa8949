"""What there is to caption: order, names, folders, and what cannot be read."""

import inspect
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmt_cli.captioning import sources
from mmt_cli.captioning.sources import Item, find_images, names_one_file, natural_key
from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import read_image


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*paths: str, recursive: bool = False) -> list[str]:
    return [item.path for item in find_images(paths, recursive=recursive)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_listed_in_natural_order_with_hidden_files_and_upper_case_suffixes():
    touch(Path("d"), "img10.jpg", "img2.jpg", "IMG3.JPG", ".hidden.png", "notes.txt", "b.webp")
    assert found("d") == ["d/.hidden.png", "d/b.webp", "d/img2.jpg", "d/IMG3.JPG", "d/img10.jpg"]


def test_natural_order_survives_digits_at_either_end_and_other_digits():
    names = ["10", "9a", "a10b2", "a10b", "a²", "a", "", "007", "7", "a2b"]
    assert sorted(names, key=natural_key) == ["", "007", "7", "9a", "10", "a", "a2b", "a10b", "a10b2", "a²"]


def test_order_of_arguments_is_kept_and_repeats_stay():
    touch(Path("d"), "z.jpg", "a.jpg")
    assert found("d/z.jpg", "d", "d/z.jpg") == ["d/z.jpg", "d/a.jpg", "d/z.jpg", "d/z.jpg"]


def test_folders_inside_are_searched_only_when_asked_in_one_natural_order():
    touch(Path("d"), "a.jpg", "b/2.jpg", "b/10.jpg", "b/c/x.jpg", "c.jpg")
    assert found("d") == ["d/a.jpg", "d/c.jpg"]
    assert found("d", recursive=True) == ["d/a.jpg", "d/b/2.jpg", "d/b/10.jpg", "d/b/c/x.jpg", "d/c.jpg"]


@pytest.mark.parametrize(("given", "expected"), [("d/", "d/a.jpg"), ("./d", "./d/a.jpg"), ("d//", "d/a.jpg")])
def test_a_folders_images_are_named_by_the_folder_as_given(given, expected):
    touch(Path("d"), "a.jpg")
    assert found(given) == [expected]


def test_a_named_file_is_taken_whatever_its_suffix():
    touch(Path(), "photo", "x.txt")
    assert found("photo", "x.txt") == ["photo", "x.txt"]


def test_stdin_is_an_item_called_dash_whatever_else_is_called_so():
    touch(Path("-"), "a.jpg")
    assert found("-") == ["-"]
    assert found("./-") == ["./-/a.jpg"]
    assert names_one_file(["-"])
    assert not names_one_file(["./-"])


def test_items_are_found_lazily():
    def paths():
        yield "-"
        raise AssertionError("asked for more than one")

    assert next(find_images(paths(), recursive=False)).path == "-"


def test_symlink_loops_end_and_each_image_comes_once():
    touch(Path("d"), "a.jpg", "sub/b.jpg")
    (Path("d") / "sub" / "up").symlink_to(Path("d").resolve())
    (Path("d") / "loop").symlink_to("loop")
    (Path("d") / "again").symlink_to("sub")
    assert sorted(Path(path).name for path in found("d", recursive=True)) == ["a.jpg", "b.jpg"]


def test_symlinked_images_and_folders_are_followed():
    touch(Path("elsewhere"), "a.jpg")
    Path("d").mkdir()
    (Path("d") / "folder").symlink_to("../elsewhere")
    (Path("d") / "one.jpg").symlink_to("../elsewhere/a.jpg")
    assert found("d", recursive=True) == ["d/folder/a.jpg", "d/one.jpg"]


def test_folders_nest_deeper_than_calls_do():
    depth = 150
    touch(Path("d/" * depth), "a.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 50)
    try:
        assert found("d", recursive=True) == ["d/" * depth + "a.jpg"]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("path", ["gone.jpg", "gone/", "a.jpg/b.jpg", "n" * 300 + ".jpg"])
def test_what_is_not_there_is_an_item_whose_reading_fails(path):
    touch(Path(), "a.jpg")
    (item,) = find_images([path], recursive=False)
    assert (item.path, item.open()) == (path, path)
    with pytest.raises(ImageError):
        read_image(item.open())


def test_an_empty_path_is_missing_and_not_the_folder_we_are_in():
    touch(Path(), "a.jpg")
    (item,) = find_images([""], recursive=False)
    with pytest.raises(ImageError) as caught:
        item.open()
    assert caught.value.kind == "missing"


def test_what_cannot_be_read_in_a_folder_is_an_item_and_the_rest_is_found():
    touch(Path("d"), "b.jpg")
    (Path("d") / "a.jpg").symlink_to("nowhere")
    (Path("d") / "c.txt").symlink_to("nowhere")
    (Path("d") / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo("d/z.jpg")
    assert found("d", recursive=True) == ["d/a.jpg", "d/b.jpg", "d/loop.jpg", "d/z.jpg"]


def test_a_folder_that_cannot_be_listed_fails_as_unreadable(monkeypatch):
    touch(Path("d"), "a.jpg")

    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.os, "scandir", refuse)
    (item,) = find_images(["d"], recursive=False)
    assert (item.path, item.failure.kind) == ("d", "unreadable")
    assert "Permission denied" in str(item.failure)


def test_an_empty_folder_holds_nothing():
    Path("d").mkdir()
    assert found("d", recursive=True) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_names_in_no_encoding_come_back_as_the_same_bytes():
    Path("d").mkdir()
    name = b"d/\xff\xfe\n.jpg"
    Path(os.fsdecode(name)).touch()
    (path,) = found("d")
    assert os.fsencode(path) == name
    assert Item(path=path).open() == path


def test_one_file_is_told_from_a_folder_and_from_several():
    touch(Path("d"), "a.jpg")
    assert names_one_file(["d/a.jpg"])
    assert names_one_file(["-"])
    assert names_one_file(["gone.jpg"])
    assert not names_one_file(["d"])
    assert not names_one_file(["d/a.jpg", "d/a.jpg"])


def test_stdin_is_read_as_bytes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff\xd8")))
    assert Item(path="-").open() == b"\xff\xd8"


def test_a_stdin_that_does_not_end_is_too_large(monkeypatch):
    monkeypatch.setattr(sources, "MAX_STDIN_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x" * 11)))
    with pytest.raises(ImageError) as caught:
        Item(path="-").open()
    assert caught.value.kind == "too_large"


def test_a_closed_stdin_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError) as caught:
        Item(path="-").open()
    assert caught.value.kind == "missing"
