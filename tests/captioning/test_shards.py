"""Many machines share one list: each item is captioned by exactly one of them."""

import io
import itertools
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.captioning.lists import find_listed
from mmt_cli.captioning.shards import parse_shard, take_shard
from mmt_cli.captioning.sources import Item, find_images
from mmt_cli.errors import UsageError


@pytest.fixture(autouse=True)
def in_a_folder_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d/inside").mkdir(parents=True)
    for number in range(7):
        Path(f"d/{number}.jpg").touch()
        Path(f"d/inside/{number}.png").touch()
    with tarfile.open("s.tar", "w") as archive:
        for number in range(5):
            archive.addfile(tarfile.TarInfo(f"{number}.jpg"))
    Path("cut.tar").write_bytes(Path("s.tar").read_bytes()[:1200])


def from_list(text: bytes, *, null: bool = False):
    return find_listed(io.BytesIO(text), null=null, name="list", recursive=False)


SOURCES = {
    "files": lambda: find_images(["d/1.jpg", "gone.jpg", "", "d/1.jpg"], recursive=False),
    "folder": lambda: find_images(["d"], recursive=False),
    "folders": lambda: find_images(["d"], recursive=True),
    "archive": lambda: find_images(["s.tar"], recursive=False),
    "damaged": lambda: find_images(["cut.tar", "d/1.jpg"], recursive=False),
    "stdin": lambda: find_images(["-"], recursive=False),
    "mixed": lambda: find_images(["d", "s.tar", "-", "d/inside"], recursive=False),
    "list": lambda: from_list(b'd\ns.tar\n{"path": "d/inside", "prompt": "A"}\ngone.jpg\n'),
    "null": lambda: from_list(b"d\0s.tar\0gone.jpg", null=True),
    "nothing": lambda: find_images([], recursive=False),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_all_shards_together_cover_a_source_exactly_once_and_in_order(source, count):
    whole = [(item.path, item.prompt) for item in SOURCES[source]()]
    shares = [
        [(item.path, item.prompt) for item in take_shard(SOURCES[source](), (index, count))] for index in range(count)
    ]
    rounds = itertools.zip_longest(*shares)
    assert [pair for turn in rounds for pair in turn if pair is not None] == whole


@given(st.integers(0, 40), st.integers(1, 50))
def test_shards_are_as_even_as_can_be(length, count):
    items = [Item(path=str(number)) for number in range(length)]
    sizes = [len(list(take_shard(items, (index, count)))) for index in range(count)]
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_taken_lazily():
    def endless():
        for number in itertools.count():
            yield Item(path=str(number))

    share = take_shard(endless(), (2, 5))
    assert [next(share).path, next(share).path] == ["2", "7"]


@pytest.mark.parametrize(
    ("text", "shard"),
    [("0/1", (0, 1)), ("3/4", (3, 4)), ("007/010", (7, 10)), ("999999999/1000000000", (999_999_999, 1_000_000_000))],
)
def test_shards_are_read(text, shard):
    assert parse_shard(text) == shard


BAD = ("", "/", "1", "1/", "/1", "0/0", "1/1", "2/1", "-1/2", "+0/2", "0/-2", "0 /2", " 0/2", "0/2\n", "0/2/3", "0.0/2")
BAD += ("0/1000000001", "\u0660/2", "0/\u0662", "0/²", "0_0/2", "0/" + "9" * 5000, "a/b", "0/x")


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_anything_else_is_refused_with_the_value_and_the_bounds(text):
    with pytest.raises(UsageError) as caught:
        parse_shard(text)
    assert repr(text[:20]).strip("'") in str(caught.value)
    assert "0 to N - 1" in str(caught.value)
    assert "1000000000" in str(caught.value)
