"""Captions in text files beside their images."""

import codecs
import errno
import os
import stat
from pathlib import Path

import pytest

from mmt_cli.captioning import sidecars
from mmt_cli.captioning.sidecars import Sidecar
from mmt_cli.errors import ImageError, OutputError, UsageError
from mmt_cli.training.data import open_dataset


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"pixels")
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.txt"),
        ("./d.png/a.b.JPG", "./d.png/a.b.txt"),
        ("d.x/photo", "d.x/photo.txt"),
        (".jpg", ".jpg.txt"),
        ("../.a.jpg", "../.a.txt"),
        ("/d//\udcff.jpeg", "/d//\udcff.txt"),
    ],
)
def test_the_suffix_of_the_image_is_replaced(name, expected):
    assert Sidecar(".txt", "skip").path_of(name) == expected
    assert Path(expected) == Path(name).with_suffix(".txt")


@pytest.mark.parametrize(("ext", "expected"), [(".caption", "a.caption"), ("cap", "a.cap"), (".en.txt", "a.en.txt")])
def test_a_suffix_gets_a_dot(ext, expected):
    assert Sidecar(ext, "skip").path_of("a.jpg") == expected


@pytest.mark.parametrize("ext", ["", ".", "..", "x/y", "/", "a\0", ".jpg", "JPG", ".txt.png"])
def test_a_suffix_that_would_lead_astray_is_refused(ext):
    with pytest.raises(UsageError, match="--sidecar-ext '"):
        Sidecar(ext, "skip")


def test_only_skip_leaves_images_out_and_only_those_with_a_sidecar(image, tmp_path):
    assert all(Sidecar(".txt", way).wanted(image) for way in ("skip", "overwrite", "append", "prepend"))
    (tmp_path / "a.txt").touch()
    wanted = [Sidecar(".txt", way).wanted(image) for way in ("skip", "overwrite", "append", "prepend")]
    assert wanted == [False, True, True, True]


@pytest.mark.parametrize(
    ("old", "way", "expected"),
    [
        (None, "skip", b"x\ny\n"),
        (None, "append", b"x\ny\n"),
        (b"", "append", b"x\ny\n"),
        (b"old\n", "skip", b"old\n"),
        (b"old\n", "overwrite", b"x\ny\n"),
        (b"old\r\n", "append", b"old\r\nx\ny\n"),
        (b"old", "append", b"old\nx\ny\n"),
        (b"\xff\xe9 old", "append", b"\xff\xe9 old\nx\ny\n"),
        (b"old", "prepend", b"x\ny\nold"),
        (codecs.BOM_UTF8 + b"old", "prepend", codecs.BOM_UTF8 + b"x\ny\nold"),
        ("old".encode("utf-16"), "append", "old\nx\ny\n".encode("utf-16")),
        ("old\n".encode("utf-16"), "append", "old\nx\ny\n".encode("utf-16")),
        (
            codecs.BOM_UTF16_BE + "old".encode("utf-16-be"),
            "prepend",
            codecs.BOM_UTF16_BE + "x\ny\nold".encode("utf-16-be"),
        ),
    ],
    ids=range(13),
)
def test_new_lines_come_where_they_should_and_old_bytes_stay(image, tmp_path, old, way, expected):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    Sidecar(".txt", way).write(image, ["x", "y"])
    assert path.read_bytes() == expected
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.jpg", path]


def test_each_caption_is_one_line_in_utf_8(image, tmp_path):
    Sidecar(".txt", "overwrite").write(image, ["one\r\n\ntwo\n", "é\udcff"])
    assert (tmp_path / "a.txt").read_bytes() == b"one two\n\xc3\xa9\xff\n"


def test_training_reads_what_was_written(image, tmp_path):
    Sidecar(".txt", "skip").write(image, ["a dog", "two\nlines"])
    [example] = open_dataset([tmp_path])
    assert example.captions == ("a dog", "two lines")


def test_the_mode_of_an_old_file_and_a_symlink_stay(image, tmp_path):
    (tmp_path / "d").mkdir()
    target = tmp_path / "d" / "target"
    target.write_text("old\n")
    target.chmod(0o640)
    (tmp_path / "a.txt").symlink_to("d/target")
    Sidecar(".txt", "append").write(image, ["x"])
    assert (tmp_path / "a.txt").is_symlink()
    assert target.read_text() == "old\nx\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list((tmp_path / "d").iterdir()) == [target]


def test_a_symlink_that_leads_nowhere_yet_is_filled(image, tmp_path):
    (tmp_path / "a.txt").symlink_to("b")
    assert Sidecar(".txt", "skip").wanted(image)
    Sidecar(".txt", "skip").write(image, ["x"])
    assert (tmp_path / "b").read_text() == "x\n"


def refused(image: str, way: str = "overwrite") -> str:
    with pytest.raises(ImageError) as caught:
        Sidecar(".txt", way).write(image, ["x"])
    assert caught.value.kind == "unreadable"
    assert str(caught.value).startswith(f"{image} ")
    assert "sidecar cannot be written" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("link", [False, True])
def test_an_image_is_never_its_own_sidecar(tmp_path, link):
    image = tmp_path / ("a.jpg" if link else "a.txt")
    image.write_bytes(b"pixels")
    if link:
        (tmp_path / "a.txt").symlink_to("a.jpg")
    assert "the image itself" in refused(str(image))
    assert image.read_bytes() == b"pixels"


@pytest.mark.parametrize("way", ["overwrite", "append"])
def test_what_is_no_file_is_left_alone(image, tmp_path, way):
    (tmp_path / "a.txt").mkdir()
    assert "something else than a file" in refused(image, way)
    (tmp_path / "a.txt").rmdir()
    os.mkfifo(tmp_path / "a.txt")
    assert "something else than a file" in refused(image, way)


def test_a_file_that_may_not_be_written_is_left_alone(image, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everything
    assert "Permission denied" in refused(image)
    assert (tmp_path / "a.txt").read_text() == "old\n"


def test_a_name_too_long_and_a_folder_that_is_none_fail_that_image_alone(tmp_path):
    (tmp_path / "shard.tar").touch()
    with pytest.raises(ImageError, match="name too long"):
        Sidecar(".caption", "overwrite").write(str(tmp_path / ("n" * 251 + ".jpg")), ["x"])
    assert "Not a directory" in refused(str(tmp_path / "shard.tar" / "a.jpg"))
    assert "No such file" in refused(str(tmp_path / "gone" / "a.jpg"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_run(image, monkeypatch, number):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sidecars, "replace_file", fail)
    with pytest.raises(OutputError, match=r"a\.jpg.*a\.txt: .*; free some space") as caught:
        Sidecar(".txt", "skip").write(image, ["x"])
    assert caught.value.exit_code == 2
