"""Every objective with every way to build a model: nothing leaks, and padding changes nothing."""

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch
from mmt_cli.training.loop import Trainer
from mmt_cli.training.objectives.contrastive import CaptionContrastive
from mmt_cli.training.objectives.masked import Masked, choose_cells, cut_cells, mask_words
from mmt_cli.training.objectives.tokens import IGNORED, next_token_loss
from mmt_cli.training.options import Objective, TrainOptions
from mmt_cli.training.origin import check_learnable

ROWS = ((1, 50, 60, 70, 80, 2), (1, 51, 2), (1, 52, 62, 72, 2))
NOISE = 2e-4  # weights are strong, and the float noise of fifty convolutions with them


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a b c"], 300)


@pytest.fixture
def core(model: Any) -> MultimodalTransformer:
    """Every preset and variant that can learn from captions, read as it is: rows bring their placeholders."""
    core: MultimodalTransformer = getattr(model, "model", model)
    if core.config.prompt_encoder is not None:
        for objective in get_args(Objective):
            with pytest.raises(UsageError, match="captions have none"):
                check_learnable(core.config, objective, "--init model")
        pytest.skip("captions have no questions")
    return core


@pytest.fixture
def masked(core: MultimodalTransformer, tokenizer: Tokenizer) -> Masked:
    torch.manual_seed(0)
    side = core.config.vision.image_size
    return Masked(core, tokenizer, grid=core.config.image_grid or (1, 1), pixels=(3, side, side), label_smoothing=0.0)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_image(core: MultimodalTransformer, row: tuple[int, ...]) -> tuple[int, ...]:
    config = core.config
    places = () if config.placeholder_id is None else (config.placeholder_id,) * config.num_image_tokens
    return (row[0], *places, *row[1:])


def test_a_hidden_word_cannot_be_seen_and_those_on_both_sides_can(
    core: MultimodalTransformer, masked: Masked, tools: ModuleType
) -> None:
    pixels, image_R = tools.random_pixels(core.config, 1), torch.tensor([0])
    row = with_image(core, (1, 50, 60, 70, 2))
    for seed in range(20):
        _, (target,) = mask_words([row], masked.mask_id, masked.never_masked, draw(seed))
        if target[-3] != IGNORED:  # the word in the middle
            break

    def logits(words: tuple[int, int, int]) -> torch.Tensor:
        changed = (*row[:-4], *words, row[-1])
        return masked.words(Batch(keys=("a",), rows=(changed,), images=pixels, image_R=image_R), draw(seed))[0]

    plain = logits((50, 60, 70))
    assert torch.equal(plain, logits((50, 61, 70)))
    assert (plain - logits((51, 60, 70))).abs().max() > NOISE
    assert (plain - logits((50, 60, 71))).abs().max() > NOISE


def test_a_hidden_cell_cannot_be_seen(core: MultimodalTransformer, masked: Masked, tools: ModuleType) -> None:
    if core.config.image_grid is None:
        pytest.skip("merged tokens lie in no grid")
    pixels = tools.random_pixels(core.config, 2).requires_grad_(True)
    batch = Batch(keys=("a", "b"), rows=ROWS, images=pixels, image_R=torch.tensor([0, 1, 1]))
    masked.cells(batch, draw())[0].square().sum().backward()
    assert pixels.grad is not None
    hidden_BN = choose_cells(2, math.prod(masked.grid), draw())
    height, width = pixels.shape[2] // masked.grid[0], pixels.shape[3] // masked.grid[1]
    if (height * masked.grid[0], width * masked.grid[1]) == tuple(pixels.shape[2:]):
        assert not cut_cells(pixels.grad, masked.grid)[hidden_BN].any()


def test_sentences_alone_are_learned_as_one_by_one(core: MultimodalTransformer) -> None:
    if not core.config.cacheable:
        pytest.skip("a single readout needs the image")
    by_hand = []
    for row in ROWS:
        logits_TV = core.head(core.run(core.fused(torch.tensor([row[:-1]]), None)))[0]
        by_hand.append(functional.cross_entropy(logits_TV, torch.tensor(row[1:]), reduction="none"))
    loss = next_token_loss(core, None, ROWS, label_smoothing=0.0, generator=draw())
    torch.testing.assert_close(loss, torch.cat(by_hand).mean(), rtol=NOISE, atol=NOISE)


def test_captions_are_learned_as_one_by_one(core: MultimodalTransformer, tools: ModuleType) -> None:
    if not core.config.cacheable:
        pytest.skip("one word a caption")
    image = core.see(tools.random_pixels(core.config, 3))
    by_hand = []
    for index, row in enumerate(with_image(core, row) for row in ROWS):
        logits_TV = core.read(torch.tensor([row[:-1]]), image[index : index + 1])[0]
        target = [IGNORED if token == core.config.placeholder_id else token for token in row[1:]]
        by_hand.append(functional.cross_entropy(logits_TV, torch.tensor(target), reduction="none"))
    rows = [with_image(core, row) for row in ROWS]
    start = len(rows[0]) - len(ROWS[0]) + 1
    loss = next_token_loss(core, image, rows, label_smoothing=0.0, generator=draw(), start=start)
    words = sum(len(row) - 1 for row in ROWS)
    torch.testing.assert_close(loss, torch.cat(by_hand).sum() / words, rtol=NOISE, atol=NOISE)


def test_texts_are_compared_alike_beside_any_others(core: MultimodalTransformer, tools: ModuleType) -> None:
    if core.config.image_width != core.config.text.block.width:
        with pytest.raises(UsageError, match="compared in one width"):
            check_learnable(core.config, "caption+contrastive", "--init model")
        pytest.skip("images and texts are not of one width")
    model = tools.build_model(dataclasses.replace(core.config, contrastive_width=6))
    learner = CaptionContrastive(model, model.see, label_smoothing=0.0)
    image = model.see(tools.random_pixels(model.config, 2))
    rows = [with_image(model, row) for row in ROWS]
    together = learner.similarity(image, rows)
    alone = torch.cat([learner.similarity(image, [row]) for row in rows], dim=1)
    assert (together - alone).abs().max() <= NOISE * together.abs().max()
    assert (together[:, :1] - together[:, 1:]).abs().min() > NOISE
    assert (together[0] - together[1]).abs().max() > NOISE


def options(squares: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / "out",
        "preset": "tiny",
        "settings": {"fusion": {"kind": "splice"}},
        "steps": 100,
        "eval_every": 100,
        "batch_size": 12,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def test_an_image_in_place_of_placeholders_is_captioned_and_no_word_is_its_placeholder(squares: Path) -> None:
    trainer = Trainer(options(squares))
    tokenizer, config = trainer.captioner.tokenizer, trainer.model.config
    assert tokenizer is not None
    assert config.placeholder_id == tokenizer.vocab_size == config.text.vocab_size - 1
    list(trainer.run())
    captioner = Captioner.load(squares.parent / "out", device="cpu")
    captions = captioner.caption([squares / f"{index}.png" for index in range(3)], prompt="A")
    assert [caption.text for caption in captions] == ["A red square.", "A green square.", "A blue square."]


@pytest.mark.parametrize("objective", ["caption+contrastive", "masked", "language"])
def test_every_objective_takes_a_model_with_placeholders(squares: Path, objective: Any) -> None:
    events = list(Trainer(options(squares, objective=objective, steps=3, eval_every=3, val=(str(squares),))).run())
    assert math.isfinite(events[-1].scores.rank)


def test_merged_tokens_are_no_cells_to_hide(squares: Path) -> None:
    with pytest.raises(UsageError, match=r"--objective masked, vision\.merged_tokens above 0"):
        Trainer(options(squares, objective="masked", settings={"vision.merged_tokens": 3}))
