"""A training run from a folder of images to a checkpoint that captions."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DataError, DivergedError, UsageError
from mmt_cli.training.events import Evaluated, Started, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.optim import learning_rate
from mmt_cli.training.options import TrainOptions

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
SMALL_SEED = {"img_size": 32, "patch_size": 16, "d_model": 32, "num_heads": 2, "num_layers": 2, "mlp_dim": 64}


def options(squares: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / "out",
        "preset": "tiny",
        "steps": 120,
        "batch_size": 6,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "eval_every": 1000,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def test_a_run_learns_the_captions_and_leaves_a_checkpoint_that_writes_them(squares: Path) -> None:
    events = list(Trainer(options(squares, val=(str(squares),), eval_every=60)).run())
    assert isinstance(events[0], Started)
    steps = [event for event in events if isinstance(event, Stepped)]
    scores = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in steps] == list(range(1, 121))
    assert [event.step for event in scores] == [60, 120]
    assert steps[-1].loss < 0.5 * steps[0].loss
    captioner = Captioner.load(squares.parent / "out", device="cpu")
    captions = captioner.caption([squares / f"{index}.png" for index in range(3)], prompt="A")
    assert [caption.text for caption in captions] == ["A red square.", "A green square.", "A blue square."]
    assert {caption.finish_reason for caption in captions} == {"stop"}


def test_metrics_hold_a_line_a_logged_step_and_a_line_an_evaluation(squares: Path) -> None:
    list(Trainer(options(squares, steps=20, val=(str(squares),), eval_every=10)).run())
    lines = [json.loads(line) for line in (squares.parent / "out/metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 10),
        ("eval", 10),
        ("train", 20),
        ("eval", 20),
    ]
    assert {"cider", "bleu1", "bleu4"} <= set(lines[1])


def test_the_last_checkpoint_is_kept_beside_the_best_and_older_ones_go(squares: Path) -> None:
    list(Trainer(options(squares, steps=6, eval_every=2)).run())
    kept = list((squares.parent / "out/checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step-000006"]
    best, last = (load_file(folder / "model.safetensors") for folder in (squares.parent / "out", kept[0]))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(squares: Path) -> None:
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        out = squares.parent / f"run{run}"
        list(Trainer(options(squares, out=out, steps=5, seed=seed, dropout=0.1)).run())
        weights.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["text.tokens.weight"], weights[2]["text.tokens.weight"])


def test_the_listing_learns_from_random_prefixes(squares: Path) -> None:
    settings = {**SMALL_SEED, "dropout_rate": 0.0}
    run = options(squares, preset="seed", settings=settings, steps=300, batch_size=12, lr=3e-3, warmup=50)
    losses = [event.loss for event in Trainer(run).run() if isinstance(event, Stepped) and event.logged]
    assert losses[-1] < 0.4 * losses[0]
    captioner = Captioner.load(squares.parent / "out", device="cpu")
    captions = captioner.caption([squares / f"{index}.png" for index in range(3)], prompt="A")
    for caption, colour in zip(captions, ("red", "green", "blue"), strict=True):
        assert caption.text.startswith(f"A {colour} square.")


def test_a_head_with_a_bias_starts_from_how_often_each_token_comes(squares: Path) -> None:
    trainer = Trainer(options(squares, preset="seed", settings=SMALL_SEED))
    tokenizer = trainer.captioner.tokenizer
    assert tokenizer is not None
    chance_V = trainer.model.head.projection.bias.detach().softmax(dim=0)
    ends, dots = chance_V[tokenizer.eos_id], chance_V[tokenizer.encode(" square.")[-1]]
    reds = chance_V[tokenizer.encode(" red")[0]]
    assert ends == pytest.approx(dots)  # one of each in each of 24 captions, and red in every third
    assert float(reds / ends) == pytest.approx((8 + 1) / (24 + 1))


@pytest.mark.parametrize(("part", "moved"), [("vision", "text."), ("text", "vision.")])
def test_a_frozen_part_keeps_every_bit_and_the_rest_moves(squares: Path, part: str, moved: str) -> None:
    trainer = Trainer(options(squares, preset="mini", settings=SMALL_MINI, freeze=part, steps=2))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    list(trainer.run())
    after = trainer.model.state_dict()
    frozen = [name for name in before if name.startswith(f"{part}.")]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(moved))


def test_cached_features_give_the_losses_of_the_tower_run_each_time(squares: Path) -> None:
    losses = []
    for cached in (False, True):
        out = squares.parent / f"cached{cached}"
        run = options(
            squares,
            out=out,
            preset="mini",
            settings=SMALL_MINI,
            freeze="vision",
            cache_features=cached,
            dropout=0.0,
            steps=6,
        )
        losses.append([event.loss for event in Trainer(run).run() if isinstance(event, Stepped)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_fine_tuning_starts_from_the_given_checkpoint(squares: Path) -> None:
    list(Trainer(options(squares)).run())
    run = options(
        squares, preset=None, init=str(squares.parent / "out"), out=squares.parent / "tuned", steps=1, lr=1e-6
    )
    losses = [event.loss for event in Trainer(run).run() if isinstance(event, Stepped)]
    assert losses[0] < 2.0


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_weights(squares: Path) -> None:
    trainer = Trainer(options(squares, steps=3))
    run = trainer.run()
    next(run)
    next(run)
    with torch.no_grad():
        trainer.model.head.norm.weight[0] = math.nan
    before = trainer.model.text.tokens.weight.clone()
    with pytest.raises(DivergedError, match=r"step 2 .*\.png"):
        list(run)
    assert torch.equal(before, trainer.model.text.tokens.weight)


def test_the_rate_rises_linearly_and_falls_to_nearly_nothing(squares: Path) -> None:
    run = options(squares, lr=1.0, warmup=10)
    rates = [learning_rate(step, run, 110) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[59] == pytest.approx(0.5, abs=0.02)
    assert 0 < rates[-1] < 1e-3


def test_a_folder_with_another_checkpoint_is_not_overwritten(squares: Path) -> None:
    (squares.parent / "out").mkdir()
    (squares.parent / "out/config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="holds another checkpoint"):
        Trainer(options(squares))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "x"}, "--preset and --init"),
        ({"cache_features": True}, "--cache-features"),
        ({"lr": float("nan")}, "--lr"),
        ({"preset": None, "init": "x", "settings": {"a": 1}}, "--set and --init"),
    ],
)
def test_options_that_exclude_each_other_are_refused(squares: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(squares, **changes)


def test_an_image_that_cannot_be_read_stops_the_run_and_is_named(squares: Path) -> None:
    (squares / "3.png").write_bytes((squares / "3.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"3\.png"):
        list(Trainer(options(squares, steps=2, batch_size=12)).run())
