"""Masked words and squares, from their pieces to a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DivergedError, UsageError
from mmt_cli.inputs.tokenizer import Tokenizer, train_tokenizer
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Batch
from mmt_cli.training.events import Evaluated, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.objectives.masked import (
    Masked,
    choose_cells,
    cut_cells,
    hide_cells,
    mask_words,
    normalised,
)
from mmt_cli.training.objectives.tokens import IGNORED
from mmt_cli.training.options import TrainOptions

BOS, EOS, PLACEHOLDER, MASK = 1, 2, 9, 0
ROWS = ((1, 50, 60, 70, 80, 2), (1, 51, 2), (1, 52, 62, 72, 2))
SMALL_MINI = {
    "vision.image_size": 64,
    "connector.block.width": 16,
    "connector.block.num_heads": 2,
    "connector.block.mlp_width": 32,
    "text.block.width": 16,
    "text.block.num_heads": 2,
    "text.block.mlp_width": 32,
    "text.num_layers": 1,
}
SMALL_SEED = {"vocab_size": 300, "img_size": 32, "patch_size": 16, "d_model": 16, "num_heads": 2, "num_layers": 2}
SMALL = {"tiny": ("tiny", {}), "cross": ("mini", SMALL_MINI), "single readout": ("seed", SMALL_SEED)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a b c"], 300)


@pytest.fixture(params=SMALL)
def learner(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Masked:
    return objective(tokenizer, *SMALL[request.param])


def objective(tokenizer: Tokenizer, name: str, settings: dict[str, Any], label_smoothing: float = 0.0) -> Masked:
    torch.manual_seed(0)
    model = MultimodalTransformer(preset(name, settings))
    initialise(model)
    side, grid = model.config.vision.image_size, model.config.image_grid
    assert grid is not None
    return Masked(model, tokenizer, grid=grid, pixels=(3, side, side), label_smoothing=label_smoothing).eval()


def batch_for(learner: Masked) -> Batch:
    side = learner.model.config.vision.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Batch(keys=("a", "b"), rows=ROWS, images=pixels, image_R=torch.tensor([1, 0, 1]))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(squares: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / "out",
        "preset": "tiny",
        "objective": "masked",
        "steps": 100,
        "eval_every": 100,
        "batch_size": 12,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


@pytest.mark.parametrize(("words", "masked"), [(1, 1), (3, 1), (10, 2), (40, 6), (100, 15)])
def test_15_percent_of_the_words_are_masked_and_at_least_one(words: int, masked: int) -> None:
    row = (BOS, PLACEHOLDER, PLACEHOLDER, *range(100, 100 + words), EOS)
    places = set()
    for seed in range(30):
        (inputs,), (targets,) = mask_words([row], MASK, {BOS, EOS, PLACEHOLDER}, draw(seed))
        hidden = {place for place, token in enumerate(inputs) if token == MASK}
        assert len(hidden) == masked
        assert targets == tuple(token if place in hidden else IGNORED for place, token in enumerate(row))
        assert all(inputs[place] == token for place, token in enumerate(row) if place not in hidden)
        places |= hidden
    assert places <= set(range(3, 3 + words))
    assert len(places) > min(words - 1, 2 * masked)


@pytest.mark.parametrize(("cells", "masked"), [(1, 1), (4, 2), (49, 24), (16, 8)])
def test_half_of_the_cells_are_masked_others_in_each_image(cells: int, masked: int) -> None:
    chosen_BN = choose_cells(64, cells, draw())
    assert set(chosen_BN.sum(dim=1).tolist()) == {masked}
    assert bool(chosen_BN.any(dim=0).all())
    assert cells == 1 or len({tuple(row) for row in chosen_BN.tolist()}) > 4


def test_cells_are_the_squares_of_the_grid_row_by_row() -> None:
    pixels = torch.randn(2, 3, 8, 12)
    cells_BNP = cut_cells(pixels, (2, 3))
    assert cells_BNP.shape == (2, 6, 48)
    torch.testing.assert_close(cells_BNP[1, 5], pixels[1, :, 4:, 8:].flatten())
    torch.testing.assert_close(cells_BNP[0, 1], pixels[0, :, :4, 4:8].flatten())


def test_an_image_that_the_grid_does_not_divide_is_resized() -> None:
    halves = torch.cat([torch.zeros(1, 1, 10, 5), torch.ones(1, 1, 10, 5)], dim=3)
    cells_BNP = cut_cells(halves, (3, 3))
    assert cells_BNP.shape == (1, 9, 9)
    assert bool((cells_BNP[0, ::3] == 0).all()) and bool((cells_BNP[0, 2::3] == 1).all())


def test_hidden_cells_are_the_mean_colour_and_the_others_stay() -> None:
    pixels = torch.randn(1, 3, 4, 6)
    hidden = hide_cells(pixels, torch.tensor([[True, False, False, False, False, True]]), (2, 3))
    expected = pixels.clone()
    expected[..., :2, :2] = expected[..., 2:, 4:] = 0
    torch.testing.assert_close(hidden, expected)


def test_targets_have_mean_0_and_variance_1_and_flat_cells_are_0() -> None:
    cells_MP = torch.cat([torch.randn(3, 200) * 5 + 2, torch.full((1, 200), 0.7)])
    found = normalised(cells_MP)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=1, unbiased=False), torch.tensor([1.0, 1, 1, 0]))


def test_only_masked_words_count_each_read_with_its_image_and_both_sides(learner: Masked) -> None:
    batch, model = batch_for(learner), learner.model
    inputs, targets = mask_words(ROWS, learner.mask_id, learner.never_masked, draw())
    by_hand = []
    for row, target, image in zip(inputs, targets, (1, 0, 1), strict=True):
        assert batch.images is not None
        seen = model.see(batch.images[image : image + 1])
        logits_TV = model.head(model.run(model.fused(torch.tensor([row]), seen).bidirectional()))[0]
        by_hand.append(functional.cross_entropy(logits_TV, torch.tensor(target), reduction="none"))
    nats = torch.cat(by_hand)
    found = learner(batch, draw())["masked_text"]
    torch.testing.assert_close(found, nats.sum() / (nats > 0).sum())


def test_the_words_behind_the_masks_and_the_pixels_behind_the_squares_cannot_be_seen(learner: Masked) -> None:
    batch = batch_for(learner)
    assert batch.images is not None
    _, targets = mask_words(ROWS, learner.mask_id, learner.never_masked, draw())
    others = tuple(
        tuple(90 if target != IGNORED else token for token, target in zip(row, masked, strict=True))
        for row, masked in zip(ROWS, targets, strict=True)
    )
    logits, words = learner.words(batch, draw())
    again, other_words = learner.words(
        Batch(keys=("a", "b"), rows=others, images=batch.images, image_R=batch.image_R), draw()
    )
    torch.testing.assert_close(logits, again, rtol=0, atol=0)
    assert other_words.tolist() == [90] * len(words)

    pixels = batch.images.clone().requires_grad_(True)
    predicted_MP, _ = learner.cells(Batch(keys=("a", "b"), rows=ROWS, images=pixels, image_R=batch.image_R), draw())
    predicted_MP.square().sum().backward()
    masked_BN = choose_cells(2, math.prod(learner.grid), draw())
    assert pixels.grad is not None
    reach_BN = cut_cells(pixels.grad.abs(), learner.grid).sum(dim=-1)
    assert float(reach_BN[masked_BN].sum()) == 0
    # The listing's tower looks at each patch alone: nothing could help there.
    assert (float(reach_BN[~masked_BN].sum()) > 0) == bool(
        learner.model.config.vision.kind != "patches" or learner.model.vision.blocks
    )


def test_begin_and_end_are_never_masked(learner: Masked) -> None:
    found = {word for seed in range(30) for word in learner.words(batch_for(learner), draw(seed))[1].tolist()}
    assert found == {word for row in ROWS for word in row[1:-1]}


def test_words_on_both_sides_and_the_image_help_to_find_a_masked_one(learner: Masked) -> None:
    batch = batch_for(learner)
    assert batch.images is not None
    rows = ((1, 50, 60, 70, 2),)
    hidden = {}
    for seed in range(20):
        _, (target,) = mask_words(rows, learner.mask_id, learner.never_masked, draw(seed))
        hidden[next(place for place, token in enumerate(target) if token != IGNORED)] = seed
    seed = hidden[2]
    image_R = torch.tensor([0])

    def logits(row: tuple[int, ...], images: torch.Tensor) -> torch.Tensor:
        return learner.words(Batch(keys=("a",), rows=(row,), images=images, image_R=image_R), draw(seed))[0]

    plain = logits(rows[0], batch.images[:1])
    assert not torch.allclose(plain, logits((1, 50, 60, 71, 2), batch.images[:1]))
    assert not torch.allclose(plain, logits((1, 51, 60, 70, 2), batch.images[:1]))
    assert not torch.allclose(plain, logits(rows[0], batch.images[1:]))


def test_a_token_gives_the_pixels_of_its_own_cell(tokenizer: Tokenizer) -> None:
    learner = objective(tokenizer, *SMALL["single readout"])
    batch = batch_for(learner)
    predicted_MP, target_MP = learner.cells(batch, draw())
    masked_BN = choose_cells(2, 4, draw())
    tower = learner.model.vision
    # A patch of zeros leaves the bias, and the position behind the class token's.
    by_hand = torch.stack([tower.embedding.bias + tower.positions[1 + n] for n in masked_BN.nonzero()[:, 1].tolist()])
    torch.testing.assert_close(predicted_MP, learner.to_pixels(by_hand))
    assert batch.images is not None
    image, cell = masked_BN.nonzero()[0].tolist()
    square = batch.images[image, :, 16 * (cell // 2) :, 16 * (cell % 2) :][:, :16, :16]
    torch.testing.assert_close(target_MP[0], normalised(square.flatten()[None])[0])


def test_the_image_loss_is_the_mean_square_over_masked_cells_and_the_total_the_sum(learner: Masked) -> None:
    batch = batch_for(learner)
    losses = learner(batch, draw())
    generator = draw()
    learner.words(batch, generator)
    predicted_MP, target_MP = learner.cells(batch, generator)
    assert predicted_MP.shape == target_MP.shape
    torch.testing.assert_close(losses["masked_image"], (predicted_MP - target_MP).square().mean())
    torch.testing.assert_close(losses["loss"], losses["masked_text"] + losses["masked_image"])


def test_label_smoothing_reaches_the_words(tokenizer: Tokenizer) -> None:
    plain, smooth = (objective(tokenizer, "tiny", {}, label_smoothing=share) for share in (0.0, 0.5))
    losses = [learner(batch_for(learner), draw())["masked_text"].item() for learner in (plain, smooth)]
    logits_MV, target_M = smooth.words(batch_for(smooth), draw())
    assert losses[1] == pytest.approx(functional.cross_entropy(logits_MV, target_M, label_smoothing=0.5).item())
    assert losses[0] != losses[1]


def test_hidden_squares_are_learned_from_those_around_them(tokenizer: Tokenizer) -> None:
    learner = objective(tokenizer, "tiny", {}).train()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    generator = draw()
    losses = []
    for _ in range(100):  # stripes, in half of the images the other way round: only the squares around can tell
        sign_B111 = 1 - 2 * torch.randint(2, (16, 1, 1, 1), generator=generator)
        wave = torch.sin(torch.arange(32) * math.pi / 4) * sign_B111
        batch = Batch(keys=("",) * 16, rows=ROWS[:1], images=wave.expand(16, 3, 32, 32), image_R=torch.tensor([0]))
        loss = learner(batch, generator)["masked_image"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9  # a guess of the mean gives 1
    assert sum(losses[-10:]) / 10 < 0.3


def test_a_run_learns_words_and_squares_and_its_checkpoint_loads(squares: Path) -> None:
    run = options(squares, val=(str(squares),), eval_every=50)
    events = list(Trainer(run).run())
    steps = [event for event in events if isinstance(event, Stepped)]
    first, last = steps[0], [event for event in steps if event.logged][-1]
    for part in ("masked_text", "masked_image"):
        assert last.parts[part] < 0.5 * first.parts[part]
    assert last.loss == pytest.approx(sum(last.parts.values()))
    early, late = (event.scores.figures for event in events if isinstance(event, Evaluated))
    assert late["loss"] < early["loss"]
    assert late["accuracy"] > 60
    assert late["loss"] == pytest.approx(late["masked_text"] + late["masked_image"])
    assert Captioner.load(squares.parent / "out", device="cpu").caption([squares / "0.png"])


def test_the_score_hides_the_same_each_time_and_leaves_the_model_as_it_was(squares: Path) -> None:
    trainer = Trainer(options(squares, preset="mini", settings=SMALL_MINI, val=(str(squares),)))
    list(trainer.task.prepare())
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    first, second = trainer.task.score(), trainer.task.score()
    assert first == second
    assert first.rank == -first.figures["loss"]
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert trainer.model.training


def test_the_score_is_the_loss_without_smoothing_over_the_whole_set(squares: Path) -> None:
    trainer = Trainer(options(squares, label_smoothing=0.3, val=(str(squares),)))
    list(trainer.task.prepare())
    scores = trainer.task.score().figures
    objective, batch = trainer.task.objective.eval(), trainer.task.batch(range(12))
    assert isinstance(objective, Masked)
    logits_MV, target_M = objective.words(batch, draw())
    assert scores["masked_text"] == pytest.approx(functional.cross_entropy(logits_MV, target_M).item(), rel=1e-4)
    assert scores["accuracy"] == pytest.approx(100 * (logits_MV.argmax(dim=1) == target_M).float().mean().item())


def test_the_best_is_chosen_by_the_loss(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(options(squares, steps=6, eval_every=2, lr=0.0, val=(str(squares),)))
    figures = iter([3.0, 2.0, 2.5])
    score = trainer.task.score

    def fake() -> Any:
        loss = next(figures)
        return type(score())(figures={"loss": loss}, rank=-loss)

    monkeypatch.setattr(trainer.task, "score", fake)
    assert [event.best for event in trainer.run() if isinstance(event, Evaluated)] == [True, True, False]


def test_the_map_to_pixels_is_trained_clipped_and_watched_but_not_saved(squares: Path) -> None:
    trainer = Trainer(options(squares, steps=3, grad_clip=1e-3, lr=1e-3, warmup=0))
    objective = trainer.task.objective
    assert isinstance(objective, Masked)
    start = objective.to_pixels.weight.clone()
    run = trainer.run()
    next(run), next(run)
    assert not torch.equal(start, objective.to_pixels.weight)
    norms = [p.grad.norm() for p in objective.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-2)
    with torch.no_grad():
        objective.to_pixels.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="step 2"):
        list(run)
    list(Trainer(options(squares, steps=1)).run())
    assert "to_pixels" not in (squares.parent / "out/model.safetensors").read_bytes()[:20_000].decode("latin-1")


def test_the_parts_are_logged(squares: Path) -> None:
    list(Trainer(options(squares, steps=1, val=(str(squares),))).run())
    train, scored = (json.loads(line) for line in (squares.parent / "out/metrics.jsonl").read_text().splitlines())
    assert list(train) == ["step", "kind", "loss", "masked_text", "masked_image", "lr", "images_per_s"]
    assert list(scored) == ["step", "kind", "loss", "masked_text", "masked_image", "accuracy"]


def test_cached_features_are_refused(squares: Path) -> None:
    with pytest.raises(UsageError, match=r"--objective masked, --cache-features"):
        options(squares, freeze="vision", cache_features=True)
