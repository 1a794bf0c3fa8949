import io
import json
import os
import pickle
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmt_cli.errors import DataError
from mmt_cli.training.data import expand_braces, open_dataset
from mmt_cli.training.examples import Example


def image_bytes(shade=0, kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 128, 255 - shade)).save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    """`members`: (name, bytes), or a TarInfo for what has no bytes."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def write_jsonl(folder, *lines):
    """Lines of bytes, or values to be written as JSON; an image a.jpg lies beside them."""
    (folder / "a.jpg").write_bytes(image_bytes())
    path = folder / "set.jsonl"
    path.write_bytes(b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines))
    return path


def problem(*sources):
    """The message of the DataError, checked to be one line."""
    with pytest.raises(DataError) as caught:
        open_dataset(sources)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message
    assert len(message) < 1000
    return message


def captions_of(*sources):
    return [example.captions for example in open_dataset(sources)]


one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


# Tar shards


def test_tar_gives_keys_captions_and_bytes_in_order(tmp_path):
    images = [image_bytes(shade, kind) for shade, kind in enumerate(["JPEG", "PNG", "WEBP"])]
    shard = write_tar(
        tmp_path / "s.tar",
        [
            ("b.jpg", images[0]),
            ("b.json", b'{"captions": [" a  dog ", "two\\tdogs\\n"], "width": 4}'),
            ("a.txt", b"\xef\xbb\xbfa cat\r\n\r\n  sits \rstill\n"),
            ("a.PNG", images[1]),
            ("deep/x.y.webp", images[2]),
            ("deep/x.y.json", b'{"caption": "a bird"}'),
            ("deep/x.y.cls", b"3"),
            ("notes.json", b"not JSON, and of no image"),
        ],
    )
    examples = open_dataset([shard])
    assert [example.key for example in examples] == [f"{shard}/{name}" for name in ("b.jpg", "a.PNG", "deep/x.y.webp")]
    assert [e.captions for e in examples] == [("a dog", "two dogs"), ("a cat", "sits", "still"), ("a bird",)]
    assert [e.read() for e in examples] == images


def test_tar_with_json_of_metadata_takes_the_captions_from_the_text(tmp_path):
    members = [("a.jpg", b"1"), ("a.json", b'{"width": 4}'), ("a.txt", b"from text")]
    assert captions_of(write_tar(tmp_path / "1.tar", members)) == [("from text",)]
    members[1] = ("a.json", b'{"caption": "from JSON"}')
    assert captions_of(write_tar(tmp_path / "2.tar", members)) == [("from JSON",)]


def test_tar_folders_and_long_names_are_no_problem(tmp_path):
    folder = tarfile.TarInfo("deep")
    folder.type = tarfile.DIRTYPE
    stem = "deep/" + "n" * 150
    shard = write_tar(tmp_path / "s.tar", [folder, (f"./{stem}.jpg", b"pixels"), (f"{stem}.txt", b"a dog")])
    (example,) = open_dataset([shard])
    assert (example.key, example.read()) == (f"{shard}/{stem}.jpg", b"pixels")


def test_tar_keys_keep_their_folders(tmp_path):
    members = [(f"{folder}/a.{kind}", folder.encode()) for folder in "xy" for kind in ("jpg", "txt")]
    assert captions_of(write_tar(tmp_path / "s.tar", members)) == [("x",), ("y",)]


@pytest.mark.parametrize("kind", list(b"12346S"), ids=chr)
def test_tar_links_devices_and_sparse_files_are_refused(tmp_path, kind):
    odd = tarfile.TarInfo("a.jpg")
    odd.type, odd.linkname = bytes([kind]), "/etc/passwd"
    message = problem(write_tar(tmp_path / "s.tar", [odd, ("a.txt", b"a dog"), ("b.jpg", b"1"), ("b.txt", b"b")]))
    assert "s.tar/a.jpg is not a plain file" in message


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/a.jpg", "//x/a.jpg", "x/.."])
def test_tar_names_that_leave_the_archive_are_refused(tmp_path, name):
    message = problem(write_tar(tmp_path / "s.tar", [("b.jpg", b"1"), ("b.txt", b"b"), (name, b"1")]))
    assert "leaves the archive" in message
    assert name in message


@pytest.mark.parametrize("second", ["a.jpg", "a.png", "./a.jpg", "a.txt"])
def test_tar_with_a_key_twice_is_refused(tmp_path, second):
    message = problem(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", b"a dog"), (second, b"2")]))
    assert "has the key of a." in message


def test_tar_image_without_captions_is_named(tmp_path):
    message = problem(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", b"a"), ("lone.jpg", b"2")]))
    assert "s.tar/lone.jpg has no captions" in message


def test_tar_with_broken_captions_names_the_member(tmp_path):
    message = problem(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.json", b'{"caption": ')]))
    assert "s.tar/a.json is not valid JSON" in message


def test_tar_cut_anywhere_is_refused(tmp_path):
    whole = write_tar(tmp_path / "s.tar", [(f"{n}.{x}", b"a dog " * 100) for n in "abc" for x in ("jpg", "txt")])
    data = whole.read_bytes()
    members = 6 * (512 + 1024)
    for cut in (*range(0, members + 1, 256), members - 1, members + 511, 1, 513):
        path = tmp_path / f"cut-{cut}.tar"
        path.write_bytes(data[:cut])
        assert "is not a whole uncompressed tar" in problem(path), cut


def test_tar_with_a_broken_header_in_the_middle_is_refused(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", b"a"), ("b.jpg", b"2"), ("b.txt", b"b")])
    data = bytearray(shard.read_bytes())
    data[2 * 1024 + 3] ^= 1
    shard.write_bytes(data)
    assert "is not a whole uncompressed tar" in problem(shard)


@pytest.mark.parametrize("size", [2**60, 2**70, -1, -512])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_tar_header_of_impossible_size_is_refused(tmp_path, kind, size):
    odd = tarfile.TarInfo("a.jpg")
    odd.type, odd.size = kind, size
    text = tarfile.TarInfo("a.txt").tobuf()
    path = tmp_path / "s.tar"
    path.write_bytes(text + odd.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "is not a whole uncompressed tar" in problem(path)


def test_tar_headers_that_break_the_parser_are_refused(tmp_path):
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, 5120
    for number, data in enumerate([(long_name.tobuf() + bytes(512)) * 1000, extended.tobuf() + b"9" * 5000 + b" a=b"]):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data.ljust(len(data) // 512 * 512 + 512, b"\0"))
        assert "is not a whole uncompressed tar" in problem(path)


def test_compressed_tar_and_other_files_named_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    (tmp_path / "text.tar").write_text("hello " * 500)
    for name in ("z.tar", "text.tar"):
        assert "is not a whole uncompressed tar" in problem(tmp_path / name)


@pytest.fixture
def shard(tmp_path):
    members = [(f"{n}.{kind}", b"%d" % n * 1000) for n in range(8) for kind in ("jpg", "txt")]
    return write_tar(tmp_path / "s.tar", members)


def test_examples_can_be_pickled_and_read_in_threads(shard):
    examples = pickle.loads(pickle.dumps(open_dataset([shard])))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(Example.read, list(examples) * 20))
    assert read == [b"%d" % n * 1000 for n in range(8)] * 20


def test_a_relative_source_is_read_after_the_folder_changed(shard, monkeypatch):
    monkeypatch.chdir(shard.parent)
    (shard.parent / "1.jpg").write_bytes(b"1")
    (shard.parent / "1.txt").write_bytes(b"one")
    first, *_, last = open_dataset(["s.tar", "."])
    monkeypatch.chdir("/")
    assert (first.key, first.read()[:2], last.key, last.read()) == ("s.tar/0.jpg", b"00", "1.jpg", b"1")


def test_a_shard_that_changed_since_it_was_indexed_is_not_read(shard):
    examples = open_dataset([shard])
    data = shard.read_bytes()
    stamps = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    shard.write_bytes(data[::-1])
    os.utime(shard, ns=(stamps[0], stamps[1] + 1))
    with pytest.raises(DataError, match=r"s\.tar changed since it was indexed"):
        examples[0].read()
    shard.write_bytes(data[:600])
    os.utime(shard, ns=stamps)
    with pytest.raises(DataError, match=r"s\.tar changed since it was indexed"):
        examples[0].read()
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot read .*s\.tar/0\.jpg \(No such file"):
        examples[0].read()


damage = st.lists(st.tuples(st.integers(0, 6 * 1024), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4)


@one_folder
@given(damage)
def test_a_damaged_tar_gives_clean_examples_or_one_line(tmp_path, damage):
    path = write_tar(tmp_path / "s.tar", [(f"{n}.{kind}", b"a dog") for n in "abc" for kind in ("jpg", "txt")])
    data = bytearray(path.read_bytes())
    for place, piece in damage:
        data[place : place + len(piece)] = piece
    path.write_bytes(data)
    try:
        examples = open_dataset([path])
    except DataError:
        problem(path)
        return
    for example in examples:
        assert example.offset + len(example.read()) <= len(data)
        assert all(caption == " ".join(caption.split()) != "" for caption in example.captions)


# Folders


@one_folder
@given(st.binary(max_size=30) | st.text(max_size=30).map(lambda text: text.encode(errors="surrogatepass")))
def test_sidecars_of_any_bytes_give_clean_captions_or_one_line(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes(data)
    try:
        (captions,) = captions_of(tmp_path)
    except DataError:
        problem(tmp_path)
        return
    assert all(caption == " ".join(caption.split()) != "" for caption in captions)


def test_folder_gives_images_in_natural_order_with_their_sidecars(tmp_path):
    for name in ("p10.jpg", "p2.PNG", "p1.webp", "P3.jpeg"):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / name).with_suffix(".txt").write_text(f" {name}\tone\n\n\ntwo  words \n", encoding="utf-8")
    (tmp_path / "README.txt").write_text("no image")
    (tmp_path / "table.csv").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.jpg").write_bytes(b"not read, and without captions")
    examples = open_dataset([tmp_path])
    names = ["p1.webp", "p2.PNG", "P3.jpeg", "p10.jpg"]
    assert [e.key for e in examples] == [str(tmp_path / name) for name in names]
    assert [e.captions for e in examples] == [(f"{name} one", "two words") for name in names]
    assert [e.read() for e in examples] == [name.encode() for name in names]


def test_folder_image_without_captions_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert "a.jpg has no captions" in problem(tmp_path)
    (tmp_path / "a.txt").write_text("\n \n")
    assert "a.txt has no captions" in problem(tmp_path)


@pytest.mark.parametrize("link", ["a.jpg", "a.txt"])
def test_folder_links_out_of_it_are_refused_and_links_within_are_read(tmp_path, link):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.jpg", "a.txt"):
        (folder / name).write_bytes(b"inside")
    (folder / link).rename(folder / "target.bin")
    (folder / link).symlink_to("target.bin")
    assert captions_of(folder) == [("inside",)]
    (folder / link).unlink()
    (tmp_path / "secret").write_text("secret")
    (folder / link).symlink_to("../secret")
    assert f"names {link}, outside the data folder" in problem(folder)


def test_a_linked_folder_and_names_that_are_not_utf8_are_read(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9")
    (folder / f"{name}.jpg").write_bytes(b"1")
    (folder / f"{name}.txt").write_text("a dog")
    (tmp_path / "link").symlink_to("real")
    (example,) = open_dataset([tmp_path / "link"])
    assert example.read() == b"1"
    (folder / f"{name}.txt").unlink()
    assert "caf\\udce9.jpg" in problem(folder)


# JSONL


def test_jsonl_gives_captions_and_images_beside_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(b"b")
    path = write_jsonl(
        tmp_path,
        b'\xef\xbb\xbf{"image": "a.jpg", "caption": " a  dog "}\r\n',
        b"\n  \n",
        {"image": "sub/b.png", "captions": ["one", "two\nlines"], "id": 7},
        b'{"image": "./a.jpg", "caption": "last line without its end"}',
    )
    examples = open_dataset([path])
    assert [e.key for e in examples] == [str(tmp_path / name) for name in ("a.jpg", "sub/b.png", "a.jpg")]
    assert [e.captions for e in examples] == [("a dog",), ("one", "two lines"), ("last line without its end",)]
    assert [e.read() for e in examples] == [image_bytes(), b"b", image_bytes()]


GOOD = {"image": "a.jpg", "caption": "a dog"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"image": "a.jpg", "capt', "is not valid JSON (Unterminated string"),
        (b"{'image': 'a.jpg'}\n", "is not valid JSON (Expecting property name"),
        (b"[" * 100_000 + b"\n", "is not valid JSON (out of bounds)"),
        (b"9" * 5000 + b"\n", "is not valid JSON (out of bounds)"),
        (b'{"image": "a.jpg", "caption": "caf\xe9"}\n', "is not UTF-8"),
        (json.dumps(GOOD).encode("utf-16"), "is not UTF-8"),
        (["a.jpg", "a dog"], "is not a JSON object but a list"),
        ("a.jpg", "is not a JSON object but a str"),
        ({"caption": "a dog"}, '"image" is missing'),
        ({"image": 3, "caption": "a dog"}, '"image" is missing or not a path'),
        ({"image": "", "caption": "a dog"}, '"image" is missing or not a path'),
        ({"image": "a.jpg"}, "has no captions"),
        ({"image": "a.jpg", "captions": []}, "has no captions"),
        ({"image": "a.jpg", "captions": "a dog"}, "not a list but a str"),
        ({"image": "a.jpg", "captions": None}, "not a list but a NoneType"),
        ({"image": "a.jpg", "caption": ["a dog"]}, "not a string but a list"),
        ({"image": "a.jpg", "caption": None}, "not a string but a NoneType"),
        ({"image": "a.jpg", "captions": ["a dog", 3]}, "not a string but a int"),
        ({"image": "a.jpg", "captions": ["a dog", " \t\n"]}, "has an empty caption"),
        ({"image": "a.jpg", "caption": ""}, "has an empty caption"),
        ({"image": "a.jpg", "caption": "a" * 100_001}, "100001 characters, more than 100000"),
        ({"image": "a.jpg", "caption": "a\ud83d"}, "half a surrogate pair"),
        ({"image": "a.jpg", "caption": "a", "captions": ["a"]}, 'both "caption" and "captions"'),
        ({"image": "missing.jpg", "caption": "a"}, "names missing.jpg, which is not a file there"),
        ({"image": ".", "caption": "a"}, "names ., which is not a file there"),
        ({"image": "a\0.jpg", "caption": "a"}, "names a\\x00.jpg, which is not a file there"),
        ({"image": "\ud83d.jpg", "caption": "a"}, "names \\ud83d.jpg, which is not a file there"),
        ({"image": "x" * 100_000, "caption": "a"}, "which is not a file there"),
        ({"image": "loop.jpg", "caption": "a"}, "names loop.jpg, which is not a file there"),
        ({"image": "pipe.jpg", "caption": "a"}, "names pipe.jpg, which is not a file there"),
        ({"image": "../outside.jpg", "caption": "a"}, "outside the data folder"),
        ({"image": "x/../../outside.jpg", "caption": "a"}, "outside the data folder"),
        ({"image": "/etc/passwd", "caption": "a"}, "outside the data folder"),
        ({"image": "link.jpg", "caption": "a"}, "outside the data folder"),
        ({"image": "https://example.org/a.jpg", "caption": "a"}, "a URL"),
        ({"image": "file:///a.jpg", "caption": "a"}, "a URL"),
        ({"image": "a\n\x1b[31m.jpg", "caption": "a"}, "names a\\n\\x1b[31m.jpg, which"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_jsonl_line_that_is_not_right_is_named(tmp_path, line, words):
    (tmp_path / "outside.jpg").write_bytes(b"1")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    message = problem(write_jsonl(folder, GOOD, b"\n", line))
    assert "set.jsonl line 3" in message
    assert words in message
    assert "problems" not in message


def test_jsonl_absolute_path_is_refused_even_inside_the_data_folder(tmp_path):
    path = write_jsonl(tmp_path, {"image": str(tmp_path / "a.jpg"), "caption": "a"})
    assert "a.jpg, outside the data folder" in problem(path)


def test_jsonl_in_a_linked_folder_is_read(tmp_path):
    (tmp_path / "real").mkdir()
    write_jsonl(tmp_path / "real", GOOD)
    (tmp_path / "link").symlink_to("real")
    (example,) = open_dataset([tmp_path / "link" / "set.jsonl"])
    assert (example.key, example.read()) == (str(tmp_path / "link" / "a.jpg"), image_bytes())


def test_a_caption_of_a_hundred_thousand_characters_is_kept(tmp_path):
    long = "a" * 100_000
    assert captions_of(write_jsonl(tmp_path, {"image": "a.jpg", "caption": f"  {long}  "})) == [(long,)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
records = st.fixed_dictionaries(
    {},
    optional={
        "image": st.sampled_from(["a.jpg", "b.jpg", "../a.jpg", "/a.jpg"]) | json_values,
        "caption": st.text() | json_values,
        "captions": st.lists(st.text(), max_size=3) | json_values,
    },
)
lines = st.one_of(st.binary(max_size=40), (json_values | records).map(lambda value: json.dumps(value).encode()))


@one_folder
@given(st.lists(lines, max_size=4).map(b"\n".join))
def test_jsonl_of_any_bytes_gives_clean_examples_or_one_line(tmp_path, data):
    path = write_jsonl(tmp_path, data)
    try:
        examples = open_dataset([path])
    except DataError:
        problem(path)
        return
    for example in examples:
        assert example.file == tmp_path.resolve() / "a.jpg"
        assert example.captions
        for caption in example.captions:
            assert caption
            assert caption == " ".join(caption.split())
            caption.encode()


@one_folder
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text.split()), min_size=1),
        min_size=1,
    )
)
def test_jsonl_keeps_every_caption_in_order(tmp_path, images):
    path = write_jsonl(tmp_path, *({"image": "a.jpg", "captions": captions} for captions in images))
    assert captions_of(path) == [tuple(" ".join(text.split()) for text in captions) for captions in images]


# Sources


def test_several_problems_give_the_first_and_their_number(tmp_path):
    path = write_jsonl(tmp_path, GOOD, {"image": "a.jpg"}, b"{\n", ["x"])
    message = problem(tmp_path / "missing.tar", path, tmp_path / "none.jsonl")
    assert message.startswith("5 problems in the data (--max-errors 0), the first: cannot read ")
    assert "missing.tar" in message
    assert problem(path).startswith(f"3 problems in the data (--max-errors 0), the first: {path} line 2 ")


def test_tar_counts_all_its_problems(tmp_path):
    members = [("../x.jpg", b"1"), ("a.jpg", b"1"), ("b.jpg", b"1"), ("b.txt", b"b")]
    message = problem(write_tar(tmp_path / "s.tar", members))
    assert "leaves the archive" in message
    assert message.startswith("2 problems")


def test_sources_of_all_formats_follow_each_other(tmp_path):
    shard = write_tar(tmp_path / "s.TAR", [("t.jpg", b"1"), ("t.txt", b"tar")])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "f.jpg").write_bytes(b"1")
    (folder / "f.txt").write_text("folder")
    lines = write_jsonl(tmp_path, {"image": "a.jpg", "caption": "lines"})
    assert captions_of(lines, str(folder), shard) == [("lines",), ("folder",), ("tar",)]


def test_every_source_must_hold_something(tmp_path):
    (tmp_path / "folder").mkdir()
    full, empty = write_jsonl(tmp_path, GOOD), write_tar(tmp_path / "s.tar", [])
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for source in (tmp_path / "folder", empty, tmp_path / "blank.jsonl"):
        assert f"no images in {source}" in problem(full, source)
    write_tar(tmp_path / "folder/s.TAR", [])
    assert f"name its shards, such as {tmp_path / 'folder'}/*.tar" in problem(tmp_path / "folder")
    assert "no data set named" in problem()


def test_sources_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe.tar")
    assert "a.zip is not a data set that can be read" in problem(tmp_path / "a.zip")
    assert "pipe.tar is a pipe, which can be read once" in problem(tmp_path / "pipe.tar")
    assert "(No such file or directory)" in problem(tmp_path / "none.tar")
    assert "(File name too long)" in problem("x" * 5000)
    assert "is a URL" in problem("https://example.org/train-{000..005}.tar")


def test_images_are_not_looked_at_while_indexing(tmp_path):
    path = write_jsonl(tmp_path, GOOD)
    (tmp_path / "a.jpg").write_bytes(b"no image at all")
    assert len(open_dataset([path])) == 1


def test_a_range_in_braces_names_several_shards(tmp_path):
    for number in (8, 9, 10):
        write_tar(tmp_path / f"s-{number:02}.tar", [("a.jpg", b"1"), ("a.txt", b"%d" % number)])
    assert captions_of(tmp_path / "s-{08..10}.tar") == [("8",), ("9",), ("10",)]
    assert "s-11.tar" in problem(tmp_path / "s-{10..12}.tar")
    assert problem(tmp_path / "s-{10..12}.tar").startswith("2 problems")


def test_a_file_with_braces_in_its_name_is_itself(tmp_path):
    shard = write_tar(tmp_path / "s-{1..2}.tar", [("a.jpg", b"1"), ("a.txt", b"a")])
    assert captions_of(shard) == [("a",)]


ends = st.tuples(st.integers(0, 30), st.integers(0, 3)).map(lambda end: f"{end[0]:0{end[1]}}")
ranges = st.tuples(ends, ends).map("{{{0[0]}..{0[1]}}}".format)
names = st.sampled_from(["a-", ".tar", "b_"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(names | ranges, max_size=3), min_size=1, max_size=3))
def test_braces_expand_as_in_bash(patterns):
    patterns = ["x" + "".join(pieces) for pieces in patterns]
    shell = subprocess.run(["bash", "-c", "echo " + " ".join(patterns)], capture_output=True, text=True, check=True)
    assert [name for pattern in patterns for name in expand_braces(pattern)] == shell.stdout.split()


@given(st.lists(names | st.sampled_from(["{x}", "{1..}", "{..2}", "{a..c}", "{1,2}", "{-1..2}", "{", "}", ".."])))
def test_braces_leave_all_other_text_alone(pieces):
    source = "no such/" + "".join(pieces)
    assert expand_braces(source) == [source]


def test_a_range_without_end_is_refused():
    assert "stands for 1000000 names, more than 100000" in problem("s-{0..999}-{0..999}.tar")
    assert "999999999" in problem("s-{0..999999999}.tar")


# The real thing


@pytest.mark.skipif("MMT_TEST_DATA" not in os.environ, reason="MMT_TEST_DATA names no data folder")
def test_flickr8k_shards_hold_what_they_should():
    folder = Path(os.environ.get("MMT_TEST_DATA", "")) / "flickr8k"
    train, dev = open_dataset([folder / "train-{000..005}.tar"]), open_dataset([folder / "dev-000.tar"])
    assert (len(train), len(dev)) == (6086, 1000)
    assert {len(example.captions) for example in (*train, *dev)} == {5}
    assert dev[0].captions[0] == "A child and a woman are at waters edge in a big city ."
    with Image.open(io.BytesIO(dev[-1].read())) as image:
        image.load()
        assert image.size == (224, 224)
