"""Natural order: numbers by their size, letters whatever their case, and every tie broken."""

import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmt_cli.captioning.order import in_order, natural_key, rough_key

# Few letters, so that names are often alike: digits of another script, letters that fold to two, bytes of no encoding.
NAMES = st.text(st.sampled_from("aAbß0019²٣.-\x01\udcff\ue000😀"), max_size=12) | st.text(
    st.characters(exclude_characters="\0/"), max_size=12
)


def plain_key(name: str) -> tuple[list[str | int], str]:
    """What the order is by definition."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def test_natural_order_survives_digits_at_either_end_and_other_digits():
    names = ["10", "9a", "a10b2", "a10b", "a²", "a", "", "007", "7", "a2b"]
    assert sorted(names, key=natural_key) == ["", "007", "7", "9a", "10", "a", "a2b", "a10b", "a10b2", "a²"]


@given(NAMES, NAMES)
@example("0", "00")
@example("a", "A")
@example("a0", "a\x01")
@example("1" + 300 * "0", "9" + 299 * "0")
def test_keys_compare_like_numbers_and_folded_text(one, other):
    assert (natural_key(one) < natural_key(other)) == (plain_key(one) < plain_key(other))
    assert (natural_key(one) == natural_key(other)) == (one == other)


@given(st.sets(NAMES | st.from_regex(r"[ab][0-2]-[0-2]-[0-2]-[0-2][aA]-[0-2]{1,2}", fullmatch=True), max_size=30))
def test_names_come_back_from_rough_keys_in_that_order(names):
    keys = [rough_key(name) for name in names]
    assert list(in_order(keys)) == sorted(names, key=plain_key)
    assert not keys


@given(st.sets(NAMES, max_size=10), st.data())
def test_a_slash_at_the_end_does_not_count(names, data):
    folders = {name for name in names if data.draw(st.booleans())}
    keys = [rough_key(name + "/" * (name in folders)) for name in names]
    assert [name.removesuffix("/") for name in in_order(keys)] == sorted(names, key=plain_key)


@pytest.mark.parametrize("length", [1, 15])
def test_keys_are_small(length):
    name = "n" * length + "0000001.jpg"
    assert sys.getsizeof(natural_key(name)) < sys.getsizeof(name) + len(name) + 10
