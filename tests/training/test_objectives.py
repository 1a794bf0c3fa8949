"""The caption loss: which tokens are inputs, which are targets, and what padding and prefixes do."""

import random

import pytest
import torch
from torch.nn import functional

from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.gate import DynamicGate
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Batch, encode_captions
from mmt_cli.training.objectives.caption import Caption
from mmt_cli.training.objectives.tokens import next_token_loss, readouts

SEED_SMALL = {"vocab_size": 40, "img_size": 16, "patch_size": 8, "d_model": 16, "num_heads": 2, "num_layers": 2}


def build(name: str, settings: dict[str, object]) -> MultimodalTransformer:
    torch.manual_seed(0)
    model = MultimodalTransformer(preset(name, settings))
    initialise(model)
    return model.eval()


def losses_by_hand(model: MultimodalTransformer, image: ImageTokens | None, rows: list[tuple[int, ...]]) -> list[float]:
    losses = []
    for index, row in enumerate(rows):
        seen = None if image is None else image[index : index + 1]
        logits_TV = model.read(torch.tensor([row[:-1]]), seen)[0]
        losses += functional.cross_entropy(logits_TV, torch.tensor(row[1:]), reduction="none").tolist()
    return losses


def test_the_loss_is_the_mean_over_every_word_and_the_end_token_and_no_padding() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    image = model.see(torch.randn(2, 3, 32, 32))
    rows = [(1, 5, 6, 2), (1, 7, 2)]
    loss = next_token_loss(model, image, rows, label_smoothing=0.0, generator=torch.Generator())
    by_hand = losses_by_hand(model, image, rows)
    torch.testing.assert_close(loss.item(), sum(by_hand) / 5)


def test_without_an_image_the_text_stands_alone() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    rows = [(1, 5, 6, 2), (1, 7, 2)]
    loss = next_token_loss(model, None, rows, label_smoothing=0.0, generator=torch.Generator())
    torch.testing.assert_close(loss.item(), sum(losses_by_hand(model, None, rows)) / 5)


def test_a_single_readout_learns_the_word_behind_a_random_prefix() -> None:
    model = build("seed", SEED_SMALL)
    image = model.see(torch.randn(1, 3, 16, 16))
    row = (1, 5, 6, 7, 2)
    losses = set()
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        losses.add(round(next_token_loss(model, image, [row], label_smoothing=0.0, generator=draw).item(), 4))
    expected = set()
    for end in range(1, len(row)):
        logits_1V = model.read(torch.tensor([row[:end]]), image)[0]
        expected.add(round(functional.cross_entropy(logits_1V, torch.tensor([row[end]])).item(), 4))
    assert losses == expected


def test_a_single_readout_sees_no_padding_and_reads_behind_its_own_prefix() -> None:
    model = build("seed", SEED_SMALL)
    image = model.see(torch.randn(3, 3, 16, 16))
    rows = [(1, 5, 6, 7, 8, 9, 2), (1, 7, 2), (1, 6, 5, 2)]
    draw = torch.Generator().manual_seed(3)
    ends = [int(torch.randint(1, len(row), (), generator=draw)) for row in rows]
    assert len(set(ends)) > 1
    by_hand = []
    for index, (row, end) in enumerate(zip(rows, ends, strict=True)):
        logits_1V = model.read(torch.tensor([row[:end]]), image[index : index + 1])[0]
        by_hand.append(functional.cross_entropy(logits_1V, torch.tensor([row[end]])).item())
    draw = torch.Generator().manual_seed(3)
    loss = next_token_loss(model, image, rows, label_smoothing=0.0, generator=draw)
    torch.testing.assert_close(loss.item(), sum(by_hand) / 3)


def test_placeholders_stand_behind_the_begin_token_and_count_in_the_context() -> None:
    tokenizer = train_tokenizer(["a b c"] * 2, 300)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    found = encode_captions([["a b c", "a"], ["c"]], tokenizer, 5, start=[bos, 99, 99], end_id=eos)
    assert found == [[(bos, 99, 99, a, b, c), (bos, 99, 99, a, eos)], [(bos, 99, 99, c, eos)]]


def test_placeholders_are_read_but_never_a_target() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    rows = [(1, 9, 9, 5, 6, 2), (1, 9, 9, 7, 2)]
    _, target_P, row_P = readouts(model, None, rows, start=3)
    found = [[token for token, row in zip(target_P.tolist(), row_P.tolist(), strict=True) if row == r] for r in (0, 1)]
    assert found == [[5, 6, 2], [7, 2]]


@pytest.mark.parametrize("captions", [[5] * 20, [1, 4, 2, 5, 3] * 6], ids=["as many each", "more or fewer"])
@pytest.mark.parametrize("name", ["joint", "cross", "gated"])
def test_what_is_read_of_a_row_does_not_depend_on_those_beside_it(name: str, captions: list[int]) -> None:
    settings: dict[str, dict[str, object]] = {
        "joint": {},
        "cross": {"fusion.kind": "cross"},
        "gated": {"fusion.kind": "cross", "fusion.gate": "dynamic"},
    }
    model = build("tiny", {"text.vocab_size": 40, **settings[name]})
    for module in model.modules():
        if isinstance(module, DynamicGate):  # closed, as it starts, it would hide what it reads
            torch.nn.init.normal_(module.projection.weight, std=0.5)
    image = model.see(torch.randn(len(captions), 3, 32, 32))
    draw = random.Random(0)
    owners = [owner for owner, count in enumerate(captions) for _ in range(count)]
    draw.shuffle(owners)
    rows = [(1, *(draw.randrange(3, 40) for _ in range(draw.randrange(1, 20))), 2) for _ in owners]
    x_PD, target_P, row_P = readouts(model, image, rows, image_R=torch.tensor(owners))
    for place, (row, owner) in enumerate(zip(rows, owners, strict=True)):
        assert target_P[row_P == place].tolist() == list(row[1:])
        alone_1TD = model.run(model.fused(torch.tensor([row[:-1]]), image[owner : owner + 1]))
        torch.testing.assert_close(x_PD[row_P == place], alone_1TD[0])


def test_rows_of_like_length_are_read_together_and_an_image_once_for_all_its_rows() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    image = model.see(torch.randn(20, 3, 32, 32))
    rows = [(1, *[5] * (1 + place // 5), 2) for place in range(100)]
    shapes = []
    fused = model.fused
    model.fused = lambda ids, seen, **more: shapes.append((len(seen), *ids.shape)) or fused(ids, seen, **more)
    readouts(model, image, rows, image_R=torch.arange(20).repeat_interleave(5))
    assert shapes == [(6, 30, 7), (7, 35, 14), (7, 35, 21)]


def test_every_caption_is_learned_with_its_own_image() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    pixels = torch.randn(2, 3, 32, 32)
    rows = ((1, 5, 6, 2), (1, 7, 2), (1, 8, 9, 2))
    batch = Batch(keys=("a", "b"), rows=rows, images=pixels, image_R=torch.tensor([1, 0, 1]))
    losses = Caption(model, model.see, label_smoothing=0.0)(batch, torch.Generator())
    by_hand = losses_by_hand(model, model.see(pixels[[1, 0, 1]]), list(rows))
    assert list(losses) == ["loss"]
    torch.testing.assert_close(losses["loss"].item(), sum(by_hand) / 8)


def test_a_single_readout_learns_from_one_caption_an_image() -> None:
    model = build("seed", SEED_SMALL)
    pixels = torch.randn(1, 3, 16, 16)
    rows = ((1, 5, 2), (1, 6, 2))
    batch = Batch(keys=("a",), rows=rows, images=pixels, image_R=torch.tensor([0, 0]))
    objective = Caption(model, model.see, label_smoothing=0.0)
    found = {round(objective(batch, torch.Generator().manual_seed(s))["loss"].item(), 4) for s in range(40)}
    expected = set()
    for row in rows:
        for end in (1, 2):
            logits_1V = model.read(torch.tensor([row[:end]]), model.see(pixels))[0]
            expected.add(round(functional.cross_entropy(logits_1V, torch.tensor([row[end]])).item(), 4))
    assert found == expected
