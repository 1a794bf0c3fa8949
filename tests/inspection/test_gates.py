"""The gates that are shown are those that captioned, and are what their definition says."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli import Captioner
from mmt_cli.captioning.run import item_seed
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ImageError, ModelError, UsageError
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.inspection.gates import GateReading, gate_values, gates_of, read_gates
from mmt_cli.model.gate import DynamicGate, TanhGate
from mmt_cli.model.presets import preset

PHOTOS = Path(__file__).parent.parent / "data"
DOG, COW = str(PHOTOS / "dog.jpg"), str(PHOTOS / "cow.jpg")
SETTINGS: dict[str, dict[str, Any]] = {
    "concat": {"fusion.gate": "dynamic"},
    "text-first": {"fusion.gate": "dynamic", "fusion.order": "text_first", "vision.class_token": True},
    "causal": {"fusion.gate": "dynamic", "fusion.visibility": "causal"},
    "splice": {"fusion": {"kind": "splice", "gate": "dynamic"}},
    "splice-prefix": {"fusion": {"kind": "splice", "visibility": "prefix", "gate": "dynamic"}},
    "cross": {"fusion": {"kind": "cross", "every": 2, "gate": "dynamic"}, "text.num_layers": 3},
    "gated-cross": {"fusion": {"kind": "gated_cross", "gate": "dynamic"}},
}


def build(tools: ModuleType, settings: dict[str, Any], **generation: Any) -> Captioner:
    """Return a captioner with strong random weights and a tokenizer of as many entries as its model, but one."""
    config = preset("tiny", {"text.vocab_size": 291, **settings})
    return Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs through the grass .", "Two dogs play in snow ."] * 4, 290),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(**{"max_new_tokens": 9, **generation}),
    )


@pytest.fixture(params=SETTINGS)
def captioner(request: pytest.FixtureRequest, tools: ModuleType) -> Captioner:
    return build(tools, SETTINGS[request.param])


def values_of(reading: GateReading) -> dict[str, tuple[float, ...]]:
    return {gate.name: gate.values for gate in reading.gates}


def near(values: tuple[float, ...], expected: Tensor) -> bool:
    return len(values) == len(expected) and bool((torch.tensor(values) - expected).abs().max() < 1e-4)


def places(captioner: Captioner) -> int:
    """Return how many places of the text the image takes."""
    model = captioner.model.config
    return 0 if model.placeholder_id is None else model.num_image_tokens


def by_hand(captioner: Captioner, prompt: str | None = None) -> dict[str, Tensor]:
    """Return what gates are computed from: text_TD, text_mean_TD (begin token included), image_ND, image_mean_D."""
    model, words = captioner.model, captioner.tokenizer
    assert words is not None
    asked = captioner.encode_prompt(prompt)
    ids = [*asked.ids, *captioner.caption([DOG], prompt=prompt)[0].tokens]
    image_ND = model.see(captioner.read(DOG).pixels_NCHW).x_BND[0]
    start = 1 + places(captioner)
    assert model.text.positions is not None
    x_TD = model.text.tokens(torch.tensor(ids)) + model.text.positions[: len(ids)]
    said_TD = torch.cat([x_TD[:1], x_TD[start:]])
    mean_TD = said_TD.cumsum(0) / torch.arange(1, len(said_TD) + 1)[:, None]
    return {"text": x_TD[start:], "text_mean": mean_TD[1:], "image": image_ND, "image_mean": image_ND.mean(0)}


def dynamic(gate: DynamicGate, x_LD: Tensor, *summary: Tensor) -> Tensor:
    parts = [x_LD, *(part.expand_as(x_LD) for part in summary)]
    return (torch.cat(parts, dim=1) @ gate.projection.weight[0] + gate.projection.bias).tanh()


@pytest.mark.parametrize("name", ["concat", "text-first"])
def test_gates_of_one_sequence_are_factors_from_each_token_and_what_it_may_know(name: str, tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS[name])
    reading = gates_of(captioner, DOG, prompt="A dog")
    hand, gates, shown = by_hand(captioner, "A dog"), captioner.model.fusion.gates, values_of(reading)
    assert list(shown) == ["fusion.image", "fusion.text"]
    nothing = torch.zeros_like(hand["image_mean"])
    assert near(shown["fusion.image"], 1 + dynamic(gates["image"], hand["image"], hand["image_mean"], nothing))
    assert near(shown["fusion.text"], 1 + dynamic(gates["text"], hand["text"], hand["image_mean"], hand["text_mean"]))
    assert {len(set(values)) for values in shown.values()} == {len(hand["image"]), len(hand["text"])}


@pytest.mark.parametrize("name", ["splice", "splice-prefix"])
def test_gates_of_spliced_text_are_told_apart_by_what_stands_there(name: str, tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS[name])
    model = captioner.model
    gates = model.fusion.gates
    reading = gates_of(captioner, DOG, prompt="A dog")
    hand, shown = by_hand(captioner, "A dog"), values_of(reading)
    assert model.text.positions is not None
    x_ND = hand["image"] + model.text.positions[1:][: len(hand["image"])]
    image_mean_D = hand["image_mean"]
    assert captioner.tokenizer is not None
    begin_D = model.text.tokens.weight[captioner.tokenizer.bos_id] + model.text.positions[0]  # all text before it
    assert near(shown["fusion.image"], 1 + dynamic(gates["image"], x_ND, image_mean_D, begin_D))
    assert near(shown["fusion.text"], 1 + dynamic(gates["text"], hand["text"], hand["image_mean"], hand["text_mean"]))


def test_gates_of_blocks_are_told_by_block_and_sublayer(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["gated-cross"])
    blocks, width = captioner.model.blocks, captioner.model.config.text.block.width
    for gate in (module for module in captioner.model.modules() if isinstance(module, DynamicGate)):
        gate.projection.weight[:, :width] = 0  # what a token has become in the blocks is no work for a hand
    reading = gates_of(captioner, DOG)
    hand, shown = by_hand(captioner), values_of(reading)
    names = [f"blocks.{index}.{part}" for index in range(2) for part in ("cross_attention", "cross_mlp")]
    assert list(shown) == names
    for name in names:
        _, index, part = name.split(".")
        gate = blocks[int(index)][part].gate
        assert near(shown[name], dynamic(gate, hand["text"], hand["image_mean"], hand["text_mean"]))
    assert len(set(shown.values())) == 4


def test_a_gate_in_a_block_reads_the_token_that_comes_to_it(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["gated-cross"])
    reading = gates_of(captioner, DOG)
    hand = by_hand(captioner)
    gate = captioner.model.blocks[0]["cross_attention"].gate  # the first sublayer of all
    expected = dynamic(gate, hand["text"], hand["image_mean"], hand["text_mean"])
    assert near(values_of(reading)["blocks.0.cross_attention"], expected)


@pytest.mark.parametrize(
    ("fusion", "names", "shift"),
    [
        ({"kind": "concat"}, ["fusion.image", "fusion.text"], 1),
        ({"kind": "splice"}, ["fusion.image", "fusion.text"], 1),
        ({"kind": "cross", "every": 2}, ["blocks.0.cross_attention", "blocks.2.cross_attention"], 0),
    ],
)
def test_a_learned_gate_is_one_number(fusion: dict[str, Any], names: list[str], shift: int, tools: ModuleType) -> None:
    captioner = build(tools, {"fusion": fusion | {"gate": "tanh"}, "text.num_layers": 3})
    gates = [module for module in captioner.model.modules() if isinstance(module, TanhGate)]
    for gate, strength in zip(gates, (0.3, -0.2), strict=True):
        gate.strength.fill_(strength)
    reading = gates_of(captioner, DOG)
    found = reading.to_json()["gates"]
    assert [(gate["name"], gate["kind"]) for gate in found] == [(name, "tanh") for name in names]
    assert [gate["values"] for gate in found] == pytest.approx([shift + math.tanh(0.3), shift + math.tanh(-0.2)])
    assert {gate.scope for gate in reading.gates} == {"all"}


def test_the_gates_shown_are_those_that_were_met_while_captioning(captioner: Captioner) -> None:
    """A cached step gives the gates one token at a time."""
    met: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda gate, inputs, _: met.setdefault(name, []).append(gate.value(*inputs[1:])[0, :, 0])

    gates = [(name, module) for name, module in captioner.model.named_modules() if isinstance(module, DynamicGate)]
    handles = [module.register_forward_hook(keep(name)) for name, module in gates]
    captioner.generate([captioner.read(DOG)], prompt="A", options=replace(captioner.generation, max_new_tokens=10))
    for handle in handles:
        handle.remove()
    reading = gates_of(captioner, DOG, prompt="A")
    assert len(reading.tokens) == 10
    for (name, _), gate in zip(gates, reading.gates, strict=True):
        if gate.scope == "text":
            expected = torch.cat(met[name])[-10:] + (1 if gate.of_fusion else 0)
            assert near(gate.values, expected)


def test_another_photo_changes_the_gates_of_the_same_words(captioner: Captioner) -> None:
    ids = captioner.encode_prompt("A dog runs").ids
    seen = [captioner.see([captioner.read(photo)]) for photo in (DOG, COW)]
    for one, other in zip(*(gate_values(captioner.model, ids, image, first=1) for image in seen), strict=True):
        assert not near(one.values, torch.tensor(other.values))


def test_later_words_change_no_gate_of_earlier_ones(captioner: Captioner) -> None:
    first = 1 + places(captioner)
    image = captioner.see([captioner.read(DOG)])
    short, long = (captioner.encode_prompt(text).ids for text in ("A dog", "A dog runs through the snow"))
    assert long[: len(short)] == short
    some, more = ([*gate_values(captioner.model, ids, image, first=first)] for ids in (short, long))
    for early, late in zip(some, more, strict=True):
        assert len(late.values) - len(early.values) == (len(long) - len(short)) * (early.scope == "text")
        assert near(early.values, torch.tensor(late.values[: len(early.values)]))


def test_dropout_is_off_and_nothing_is_left_on_the_model(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["gated-cross"] | {"text.block.dropout": 0.5})
    expected = gates_of(captioner, DOG)
    captioner.model.train()
    assert gates_of(captioner, DOG) == expected
    assert captioner.model.training
    assert not any(module._forward_hooks for module in captioner.model.modules())


def test_the_caption_is_the_one_that_captioning_gives_and_its_pieces_make_it_up(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["splice"], temperature=3.0)
    reading = gates_of(captioner, DOG, prompt="A dog")
    picture = captioner.read(DOG)
    [[caption]] = captioner.generate([picture], prompt="A dog", seeds=[item_seed(0, DOG)])
    assert reading.caption == caption.text
    assert [piece.strip() for piece in reading.tokens[:2]] == ["A", "dog"]
    assert len(reading.tokens) == 2 + len(caption.tokens)
    assert gates_of(captioner, COW, prompt="A dog").caption != reading.caption


def test_the_end_token_is_no_word(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["concat"])
    tokens = captioner.caption([DOG])[0].tokens
    end = next(token for token in tokens[2:] if token != tokens[0])
    captioner.generation = replace(captioner.generation, end_token_ids=(end,))
    reading = gates_of(captioner, DOG)
    assert len(reading.tokens) == tokens.index(end) == len(values_of(reading)["fusion.text"]) > 0


def test_a_special_token_amid_the_words_is_shown_by_its_name(
    tools: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = build(tools, SETTINGS["concat"])
    [caption] = captioner.caption([DOG], prompt="A", max_new_tokens=3)
    assert captioner.tokenizer is not None
    told = replace(caption, tokens=(caption.tokens[0], captioner.tokenizer.pad_id, caption.tokens[2]))
    monkeypatch.setattr(captioner, "generate_from", lambda *_, **__: [[told]])
    assert gates_of(captioner, DOG, prompt="A").tokens[2] == "<pad>"


def test_an_empty_caption_has_no_gates_of_words(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["concat"])
    captioner.generation = replace(captioner.generation, end_token_ids=(captioner.caption([DOG])[0].tokens[0],))
    reading = gates_of(captioner, DOG)
    assert (reading.tokens, values_of(reading)["fusion.text"]) == ((), ())
    assert len(values_of(reading)["fusion.image"]) == 16


@pytest.mark.parametrize("name", ["concat", "splice"])
def test_a_caption_that_fills_the_context_is_read_as_far_as_the_model_read_it(name: str, tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS[name] | {"text.max_length": 24}, max_new_tokens=40)
    reading = gates_of(captioner, DOG)
    room = 24 - 1 - places(captioner)
    assert len(captioner.caption([DOG])[0].tokens) == room + 1
    assert len(reading.tokens) == len(values_of(reading)["fusion.text"]) == room


def test_cells_are_the_rows_of_the_picture_without_its_class_token(tools: ModuleType) -> None:
    [plain, with_class] = [gates_of(build(tools, SETTINGS[name]), DOG) for name in ("concat", "text-first")]
    for reading, extra in ((plain, 0), (with_class, 1)):
        gate = reading.gates[0]
        cells = reading.cells(gate)
        assert (len(gate.values), [len(row) for row in cells]) == (16 + extra, [4] * 4)
        assert tuple(value for row in cells for value in row) == gate.values[extra:]


def test_merged_tokens_lie_in_no_cells(tools: ModuleType) -> None:
    settings = {"vision.merged_tokens": 3, "vision.num_layers": 2}
    reading = gates_of(build(tools, SETTINGS["concat"] | settings), DOG)
    assert len(reading.gates[0].values) == 10
    assert reading.cells(reading.gates[0]) == []


def save(folder: Path, captioner: Captioner, *, tokenizer: bool = True) -> str:
    save_checkpoint(
        folder,
        captioner.model,
        tokenizer=captioner.tokenizer if tokenizer else None,
        preprocessing=captioner.preprocessing,
        generation=captioner.generation,
        card="",
    )
    return str(folder)


def test_a_folder_is_read_with_its_own_defaults(tools: ModuleType, tmp_path: Path) -> None:
    captioner = build(tools, SETTINGS["cross"], max_new_tokens=4)
    reading = read_gates(save(tmp_path / "model", captioner), DOG, prompt="A")
    expected = gates_of(captioner, DOG, prompt="A")
    assert (reading.caption, reading.tokens) == (expected.caption, expected.tokens)
    assert len(reading.tokens) == 5
    for name, values in values_of(reading).items():
        assert near(values, torch.tensor(values_of(expected)[name]))


def test_what_has_no_gates_or_no_words_says_so_with_both_values(tools: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model 'preset:dynamic', --image 'a\.jpg'"):
        read_gates("preset:dynamic", "a.jpg")
    for fusion in ({"kind": "concat"}, {"kind": "cross"}):
        plain = save(tmp_path / fusion["kind"], build(tools, {"fusion": fusion}))
        with pytest.raises(UsageError, match=r"fusion\.gate none.*--preset dynamic, --preset flamingo"):
            read_gates(plain, DOG)
    gated = build(tools, SETTINGS["concat"])
    with pytest.raises(ModelError, match=r"bare has none.*add its tokenizer\.json"):
        read_gates(save(tmp_path / "bare", gated, tokenizer=False), DOG)
    with pytest.raises(ImageError, match="does not exist"):
        gates_of(gated, str(tmp_path / "none.jpg"))
    with pytest.raises(UsageError, match="the prompt is too long"):
        gates_of(gated, str(tmp_path / "none.jpg"), prompt="dog " * 100)
