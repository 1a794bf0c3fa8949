"""What there is to caption: order, names, folders, and what cannot be read."""

import contextlib
import inspect
import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmt_cli.captioning import folders, items
from mmt_cli.captioning.sources import Item, find_images, names_one_file
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

    monkeypatch.setattr(folders.os, "scandir", refuse)
    (item,) = find_images(["d"], recursive=False)
    assert (item.path, item.failure.kind) == ("d", "unreadable")
    assert "Permission denied" in str(item.failure)


def test_a_listing_that_breaks_off_keeps_what_it_has_named(monkeypatch):
    touch(Path("d"), "a.jpg", "b.jpg")
    listed = os.scandir("d")

    def break_off(_folder):
        def entries():
            yield next(listed)
            raise OSError(5, "Input/output error")

        return contextlib.closing(entries())

    monkeypatch.setattr(folders.os, "scandir", break_off)
    first, second = find_images(["d"], recursive=False)
    assert first.path in ("d/a.jpg", "d/b.jpg")
    assert (second.path, second.failure.kind) == ("d", "unreadable")


def test_what_the_run_writes_is_no_image_in_a_folder_whatever_leads_to_it():
    touch(Path("d"), "a.jpg", "b/out.jpg", "z.jpg")
    Path("d/link.jpg").symlink_to("b/out.jpg")
    Path("d/hard.jpg").hardlink_to("d/b/out.jpg")
    status = Path("d/b/out.jpg").stat()
    excluded = {(status.st_dev, status.st_ino)}
    items = find_images(["d", "d/b/out.jpg"], recursive=True, excluded=excluded)
    assert [item.path for item in items] == ["d/a.jpg", "d/z.jpg", "d/b/out.jpg"]


def test_what_cannot_be_read_is_not_taken_for_what_the_run_writes():
    Path("d").mkdir()
    Path("d/a.jpg").symlink_to("nowhere")
    assert [item.path for item in find_images(["d"], recursive=False, excluded={(1, 1)})] == ["d/a.jpg"]


def test_folders_that_are_called_like_images_are_folders():
    touch(Path("d"), "b.jpg/a.png", "c.jpg")
    assert found("d") == ["d/c.jpg"]
    assert found("d", recursive=True) == ["d/b.jpg/a.png", "d/c.jpg"]


def test_a_folder_stands_where_its_name_without_the_slash_does():
    touch(Path("d"), "a/x.jpg", "a.jpg", "a-.jpg")
    assert found("d", recursive=True) == ["d/a/x.jpg", "d/a-.jpg", "d/a.jpg"]


def test_names_that_differ_late_come_in_natural_order_too():
    names = [f"2026-11-26_10.30.{second}.jpg" for second in (2, 10, 9, 100)]
    touch(Path("d"), *names)
    assert found("d") == [f"d/{names[index]}" for index in (0, 2, 1, 3)]


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
    assert Item(path=path).open() == Item(path=path).file == path


def test_one_file_is_told_from_a_folder_and_from_several():
    touch(Path("d"), "a.jpg")
    assert names_one_file(["d/a.jpg"])
    assert names_one_file(["-"])
    assert names_one_file(["gone.jpg"])
    assert not names_one_file(["d"])
    assert not names_one_file(["d/a.jpg", "d/a.jpg"])


def test_stdin_is_read_as_bytes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff\xd8")))
    (item,) = find_images(["-"], recursive=False)
    assert item.open() == b"\xff\xd8"
    assert item.file is None


def test_a_stdin_that_does_not_end_is_too_large(monkeypatch):
    monkeypatch.setattr(items, "MAX_STDIN_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x" * 11)))
    with pytest.raises(ImageError) as caught:
        Item(path="-", stdin=True).open()
    assert caught.value.kind == "too_large"


def test_a_closed_stdin_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError) as caught:
        Item(path="-", stdin=True).open()
    assert caught.value.kind == "missing"


def test_a_listing_holds_little_more_than_names():
    touch(Path("d"), *(f"IMG_{number:07d}.jpg" for number in range(3000)))
    touch(Path("d"), *(f"{number}.txt" for number in range(3000)))
    next(find_images(["d"], recursive=False))
    tracemalloc.start()
    try:
        items = find_images(["d"], recursive=False)
        next(items)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 130 * 3000  # a million of them then take less than half of 300 MB


_MILLION = """
import resource, sys, time
from mmt_cli.captioning.sources import find_images

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, start = peak(), time.process_time()  # not of the clock: other tests run beside
items = find_images(["d"], recursive=False)
next(items)
seconds = time.process_time() - start
print(1 + sum(1 for _ in items), seconds, (peak() - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts in other units there")
def test_of_a_million_names_the_first_comes_within_5_seconds_and_all_within_300_megabytes():
    Path("d").mkdir()
    for number in range(1_000_000):
        os.mknod(f"d/IMG_{number * 7919 % 1_000_000:07d}.jpg")
    done = subprocess.run([sys.executable, "-c", _MILLION], capture_output=True, text=True, check=True)
    count, seconds, megabytes = map(float, done.stdout.split())
    assert count == 1_000_000
    assert seconds < 5
    assert megabytes < 300
