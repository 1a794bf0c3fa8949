"""Names of a checkpoint's tensors become ours by a table, and come back by it."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmt_cli.checkpoint.families.names import bert_layers, clip_tower, llama_layers
from mmt_cli.checkpoint.keymap import Origin, Rule, map_names
from mmt_cli.errors import ModelError

QKV = Rule("layer.{i}.{query|key|value}.{weight|bias}", "blocks.{i}.qkv.{weight|bias}")


def test_slots_on_both_sides_are_carried_over() -> None:
    rules = (Rule("h.{i}.mlp.{j}.{weight|bias}", "blocks.{i}.mlp.{j}.{weight|bias}"), Rule("{*}", "rest.{*}"))
    assert map_names(["h.12.mlp.3.bias", "h.x.mlp.3.bias"], rules) == {
        "blocks.12.mlp.3.bias": Origin(("h.12.mlp.3.bias",)),
        "rest.h.x.mlp.3.bias": Origin(("h.x.mlp.3.bias",)),
    }


def test_templates_hold_for_whole_names_and_their_dots_are_dots() -> None:
    for name in ("a.b.c", "xa.b", "a_b", "a.b\n"):
        with pytest.raises(ModelError, match="unknown tensor"):
            map_names([name], (Rule("a.b", "ours"),))


def test_the_first_rule_that_matches_decides() -> None:
    assert map_names(["a.b"], (Rule("a.{*}", "first.{*}"), Rule("{*}.b", "{*}"))) == {"first.b": Origin(("a.b",))}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_parts_are_joined_in_the_tables_order_whatever_the_files(order: tuple[int, ...]) -> None:
    parts = [f"layer.4.{part}.weight" for part in ("query", "key", "value")]
    assert map_names([parts[i] for i in order], (QKV,)) == {"blocks.4.qkv.weight": Origin(tuple(parts))}


@pytest.mark.parametrize("missing", ["query", "key", "value"])
def test_a_part_that_is_missing_is_named(missing: str) -> None:
    names = [f"layer.0.{part}.bias" for part in ("query", "key", "value") if part != missing]
    whole = [f"layer.1.{part}.bias" for part in ("query", "key", "value")]
    with pytest.raises(ModelError, match=rf"part of a tensor is missing \({missing}, beside 'layer\.0\.") as caught:
        map_names([*whole, *names], (QKV,))
    assert "\n" not in str(caught.value)


def test_matrices_that_lie_the_other_way_are_told() -> None:
    rules = (
        Rule("h.{i}.c_attn.weight", "{i}.qkv.weight", transposed=True),
        Rule("h.{i}.c_attn.bias", "{i}.qkv.bias"),
        Rule("h.{i}.{k|v}.weight", "{i}.kv.weight", transposed=True),
    )
    names = ["h.0.c_attn.weight", "h.0.c_attn.bias", "h.0.v.weight", "h.0.k.weight"]
    expected = {
        "0.qkv.weight": Origin(("h.0.c_attn.weight",), transposed=True),
        "0.qkv.bias": Origin(("h.0.c_attn.bias",)),
        "0.kv.weight": Origin(("h.0.k.weight", "h.0.v.weight"), transposed=True),
    }
    assert map_names(names, rules) == expected


def test_dropped_names_are_known_and_have_no_place() -> None:
    rules = (Rule("{*}.position_ids", None), Rule("a.{b|c}.mask", None), Rule("w", "w"))
    assert map_names(["x.y.position_ids", "a.c.mask", "w"], rules) == {"w": Origin(("w",))}
    with pytest.raises(ModelError, match=r"'a\.d\.mask', no rule of 3 knows it"):
        map_names(["a.d.mask"], rules)


@pytest.mark.parametrize("name", ["", "x", "\x1b[31m\n", "x" * 10**6])
def test_an_unknown_name_is_told_in_one_short_line(name: str) -> None:
    with pytest.raises(ModelError, match="unknown tensor") as caught:
        map_names(["layer.0.query.weight", name], (QKV,))
    assert len(str(caught.value)) < 300
    assert re.search(r"[\x00-\x1f]", str(caught.value)) is None


def test_two_names_for_one_tensor_are_refused() -> None:
    rules = (Rule("drop.{*}", None), Rule("old.{*}", "{*}"), Rule("{*}", "{*}"))
    assert map_names(["drop.a", "old.a", "b"], rules) == {"a": Origin(("old.a",)), "b": Origin(("b",))}
    with pytest.raises(ModelError, match=r"'old\.a' and 'a', both 'a'"):
        map_names(["old.a", "a"], rules)


def test_two_layouts_of_one_part_are_refused() -> None:
    names = [f"layer.0.{part}.bias" for part in ("query", "key", "value")]
    with pytest.raises(ModelError, match=r"'layer\.0\.key\.bias' and 'model\.layer\.0\.key\.bias', both"):
        map_names([*names, "model.layer.0.key.bias"], (QKV,), ((r"model\.", ""),))


def test_other_layouts_begin_otherwise_and_the_first_that_does_counts() -> None:
    layouts = ((r"model\.vision_tower\.", "vision."), (r"(?:model\.)?tower\.", "vision."), (r"visio", "x"))
    rules = (Rule("vision.{*}", "vision.{*}"),)
    for beginning in ("model.vision_tower.", "model.tower.", "tower."):
        assert map_names([beginning + "a.model.tower.b"], rules, layouts) == {
            "vision.a.model.tower.b": Origin((beginning + "a.model.tower.b",))
        }
    with pytest.raises(ModelError, match="unknown tensor"):  # the last layout changes what the first made of nothing
        map_names(["vision.a"], rules, layouts)


def test_a_slot_without_a_place_is_our_own_mistake() -> None:
    for rule in (Rule("a.{*}", "b"), Rule("a.{i}", "b"), Rule("{a|b}.{c|d}", "e")):
        with pytest.raises(AssertionError, match="without a place"):
            map_names(["a.c" if "|" in rule.theirs else "a.1"], (rule,))


TABLES = {
    "bert": bert_layers("encoder.layer.{i}.", "blocks.{i}.", cross=True),
    "clip": clip_tower("vision_model."),
    "llama": llama_layers("layers.{i}.", "blocks.{i}."),
}


@given(data=st.data())
def test_names_are_mapped_alike_in_any_order(data: st.DataObject) -> None:
    rules = TABLES[data.draw(st.sampled_from(sorted(TABLES)))]
    numbers = data.draw(st.sets(st.integers(0, 99), min_size=1, max_size=4))
    names = []
    for template, number in itertools.product((rule.theirs for rule in rules if rule.ours is not None), numbers):
        pieces = re.split(r"\{([^}]*)\}", template.replace("{i}", str(number)))
        choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
        names += ["".join(chosen) for chosen in itertools.product(*choices)]
    names = list(dict.fromkeys(names))
    mapped = map_names(names, rules)
    assert map_names(data.draw(st.permutations(names)), rules) == mapped
    assert sorted(name for origin in mapped.values() for name in origin.names) == sorted(names)
