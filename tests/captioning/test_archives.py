"""Images in tar shards: which, in what order, where they lie, and what is wrong with an archive."""

import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.captioning import items
from mmt_cli.captioning.items import Item, Member, stamp_of
from mmt_cli.captioning.sources import find_images, names_one_file
from mmt_cli.errors import ImageError


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found(*paths: str) -> list[Item]:
    return list(find_images(paths, recursive=False))


def pack(path: str, *members: tuple[str | tarfile.TarInfo, bytes], tar_format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def typed(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "b.jpg"
    return member


def failure_of(item: Item) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        item.open()
    return caught.value.kind, str(caught.value)


def test_images_come_in_the_order_of_the_archive_and_nothing_else_does():
    pack("s.tar", ("10.JPG", b"ten"), ("10.json", b"{}"), ("2.png", b"two"), ("d/x.webp", b""), ("10.JPG", b"again"))
    listed = found("s.tar")
    assert [item.path for item in listed] == ["s.tar/10.JPG", "s.tar/2.png", "s.tar/d/x.webp", "s.tar/10.JPG"]
    assert [item.open() for item in listed] == [b"ten", b"two", b"", b"again"]
    assert {item.file for item in listed} == {None}


@pytest.mark.parametrize("name", ["./a.jpg", "/a.jpg", "a.jpg"])
def test_dots_and_slashes_that_tools_write_before_names_do_not_show(name):
    pack("s.tar", (name, b"a"))
    assert [item.path for item in found("./s.tar")] == ["./s.tar/a.jpg"]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_long_and_in_no_encoding_are_kept(tar_format):
    names = [os.fsdecode(b"\xff\n.jpg"), "ü" * 40 + ".jpg"]
    pack("s.tar", *((name, b"x") for name in names), tar_format=tar_format)
    assert [item.path for item in found("s.tar")] == [f"s.tar/{name}" for name in names]


def test_a_tar_is_told_by_its_name_in_any_case_and_by_being_a_file():
    pack("S.TAR", ("a.jpg", b"a"))
    pack("s.tar.jpg", ("a.jpg", b"a"))
    Path("folder.tar").mkdir()
    Path("folder.tar/b.jpg").touch()
    os.mkfifo("pipe.tar")
    paths = [item.path for item in found("S.TAR", "s.tar.jpg", "folder.tar", "pipe.tar", "gone.tar")]
    assert paths == ["S.TAR/a.jpg", "s.tar.jpg", "folder.tar/b.jpg", "pipe.tar", "gone.tar"]
    assert names_one_file(["gone.tar"])
    assert not names_one_file(["S.TAR"])


def test_archives_within_folders_are_not_looked_into():
    Path("d").mkdir()
    pack("d/s.tar", ("a.jpg", b"a"))
    assert found("d") == []


@pytest.mark.parametrize(
    ("kind", "word"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.FIFOTYPE, "regular"), (b"D", "regular")],
)
def test_what_is_named_like_an_image_and_is_no_file_fails_and_the_rest_is_read(kind, word):
    pack("s.tar", (typed("a.jpg", kind), b""), ("b.jpg", b"b"), (typed("folder.jpg", tarfile.DIRTYPE), b""))
    link, image = found("s.tar")
    assert link.path == "s.tar/a.jpg"
    assert failure_of(link)[0] == "unsupported"
    assert word in failure_of(link)[1]
    assert image.open() == b"b"


def test_a_sparse_file_fails_and_the_rest_is_read():
    pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,3", "GNU.sparse.size": "99999999"}
    sparse = tarfile.TarInfo("a.jpg")
    sparse.pax_headers = pax_headers
    pack("s.tar", (sparse, b"abc"), ("b.jpg", b"b"))
    first, second = found("s.tar")
    assert failure_of(first)[0] == "unsupported"
    assert "sparse" in failure_of(first)[1]
    assert second.open() == b"b"


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 600, 1023, 1024, 1025, 1536, 1700, 2047, 2048])
def test_of_a_cut_off_archive_the_sound_images_come_and_then_the_archive_fails(cut):
    pack("s.tar", ("a.jpg", b"a" * 512), ("b.jpg", b"b" * 512))
    Path("s.tar").write_bytes(Path("s.tar").read_bytes()[:cut])
    *sound, last = found("s.tar")
    assert [item.path for item in sound] == ["s.tar/a.jpg", "s.tar/b.jpg"][: (cut >= 1024) + (cut >= 2048)]
    assert all(len(item.open()) == 512 for item in sound)
    assert last.path == "s.tar"
    assert failure_of(last)[0] == "truncated"


def test_of_a_damaged_archive_the_sound_images_come_and_then_the_archive_fails():
    pack("s.tar", ("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c"))
    data = bytearray(Path("s.tar").read_bytes())
    data[1024:1124] = b"x" * 100  # in the second header
    Path("s.tar").write_bytes(data)
    first, last = found("s.tar")
    assert first.open() == b"a"
    assert (last.path, failure_of(last)[0]) == ("s.tar", "unreadable")


def test_what_is_no_tar_at_all_fails_as_unreadable():
    Path("s.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    (item,) = found("s.tar")
    assert (item.path, failure_of(item)[0]) == ("s.tar", "unreadable")


def test_an_archive_that_cannot_be_opened_fails_as_unreadable(monkeypatch):
    pack("s.tar", ("a.jpg", b"a"))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (whole,) = found("s.tar")
    monkeypatch.setattr(Path, "open", refuse)
    (item,) = found("s.tar")
    assert (item.path, failure_of(item)[0]) == ("s.tar", "unreadable")
    assert failure_of(whole)[0] == "unreadable"


@given(st.data())
def test_whatever_is_damaged_every_item_is_read_or_fails_by_name(data):
    pack("s.tar", ("a.jpg", b"a" * 600), ("n" * 120 + ".jpg", b"b"), (typed("c.jpg", tarfile.SYMTYPE), b""))
    archive = bytearray(Path("s.tar").read_bytes()[:5000])
    for _ in range(data.draw(st.integers(0, 3))):
        archive[data.draw(st.integers(0, 4999))] = data.draw(st.sampled_from(b"\0019-SLx\x80\xff"))
    for start in range(0, 4608, 512):
        header = archive[start : start + 512]
        if header[257:262] == b"ustar":  # with its checksum right, damage goes deeper
            archive[start + 148 : start + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    Path("s.tar").write_bytes(archive)
    for item in found("s.tar"):
        try:
            assert isinstance(item.open(), bytes)
        except ImageError as error:
            assert str(error).startswith(item.path)


def test_an_empty_archive_holds_nothing():
    pack("s.tar")
    assert found("s.tar") == []


def test_an_archive_is_listed_lazily():
    pack("s.tar", ("a.jpg", b"a"), ("b.jpg", b"b" * 512))
    Path("s.tar").write_bytes(Path("s.tar").read_bytes()[:1600])
    listing = find_images(["s.tar"], recursive=False)
    assert next(listing).open() == b"a"
    assert next(listing).failure is not None


@pytest.mark.parametrize("change", ["size", "time"])
def test_an_archive_that_changed_since_is_not_read(change):
    pack("s.tar", ("a.jpg", b"a"))
    (item,) = found("s.tar")
    status = Path("s.tar").stat()
    if change == "size":
        pack("s.tar", ("x" * 200 + ".jpg", b"x" * 20_000))
        os.utime("s.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime("s.tar", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert failure_of(item)[0] == "unreadable"
    assert "changed" in failure_of(item)[1]


def test_an_archive_that_is_gone_makes_its_images_missing():
    pack("s.tar", ("a.jpg", b"a"))
    (item,) = found("s.tar")
    Path("s.tar").unlink()
    assert failure_of(item)[0] == "missing"


def test_an_image_that_ends_early_is_truncated():
    Path("s.tar").write_bytes(b"abc")
    member = Member(archive="s.tar", offset=1, size=3, stamp=stamp_of(Path("s.tar").stat()))
    kind, message = failure_of(Item(path="s.tar/a.jpg", member=member))
    assert kind == "truncated"
    assert "2 of 3 bytes" in message


def test_a_member_larger_than_any_image_is_not_read(monkeypatch):
    monkeypatch.setattr(items, "MAX_STDIN_BYTES", 10)
    pack("s.tar", ("a.jpg", b"x" * 10), ("b.jpg", b"x" * 11))
    small, large = found("s.tar")
    assert small.open() == b"x" * 10
    assert failure_of(large)[0] == "too_large"


def test_threads_read_one_archive_at_once():
    pack("s.tar", *((f"{number}.jpg", b"%d" % number * 5000) for number in range(40)))
    listed, read = found("s.tar"), {}

    def take(part: list[Item]) -> None:
        read.update({item.path: item.open() for item in part})

    threads = [threading.Thread(target=take, args=(listed[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {f"s.tar/{number}.jpg": b"%d" % number * 5000 for number in range(40)}
