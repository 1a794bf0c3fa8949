"""Captioning with a contrastive loss, from its pieces to a run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import UsageError
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Batch
from mmt_cli.training.events import Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.objectives.contrastive import CaptionContrastive, info_nce
from mmt_cli.training.options import TrainOptions

SMALL_SEED = {"vocab_size": 40, "img_size": 32, "patch_size": 16, "d_model": 16, "num_heads": 2, "num_layers": 2}
ROWS = ((1, 5, 6, 2), (1, 7, 2), (1, 8, 9, 4, 2), (1, 3, 2))


def options(squares: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / "out",
        "preset": "tiny",
        "objective": "caption+contrastive",
        "steps": 80,
        "eval_every": 80,
        "batch_size": 12,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def objective(name: str = "tiny", **settings: Any) -> CaptionContrastive:
    torch.manual_seed(0)
    config = dataclasses.replace(preset(name, settings or {"text.vocab_size": 40}), contrastive_width=6)
    model = MultimodalTransformer(config)
    initialise(model)
    return CaptionContrastive(model.eval(), model.see, label_smoothing=0.0)


@pytest.mark.parametrize("size", [2, 5])
def test_the_loss_is_ln_b_where_all_are_alike(size: int) -> None:
    assert float(info_nce(torch.full((size, size), 3.0))) == pytest.approx(math.log(size))


def test_the_loss_is_the_mean_of_both_directions_and_the_pair_is_on_the_diagonal() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 5.0]])
    rows = [math.log(math.exp(2) + 1) - 2, math.log(math.exp(1) + math.exp(5)) - 5]
    columns = [math.log(math.exp(2) + math.exp(1)) - 2, math.log(1 + math.exp(5)) - 5]
    assert float(info_nce(logits)) == pytest.approx((sum(rows) / 2 + sum(columns) / 2) / 2)


def test_another_caption_of_an_image_is_no_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective()
    compared = []

    def similarity(image: Any, rows: Any) -> torch.Tensor:
        compared.append((len(image), rows))
        return torch.zeros(len(image), len(rows))

    monkeypatch.setattr(learner, "similarity", similarity)
    batch = Batch(keys=("a", "b"), rows=ROWS, images=torch.randn(2, 3, 32, 32), image_R=torch.tensor([0, 0, 1, 1]))
    for seed in range(20):
        learner(batch, torch.Generator().manual_seed(seed))
    assert {images for images, _ in compared} == {2}
    assert {rows for _, rows in compared} == {(a, b) for a in ROWS[:2] for b in ROWS[2:]}


def test_the_total_weighs_the_parts_as_coca_does() -> None:
    learner = objective()
    batch = Batch(keys=("a", "b"), rows=ROWS[:2], images=torch.randn(2, 3, 32, 32), image_R=torch.tensor([0, 1]))
    losses = learner(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses["loss"], 2 * losses["caption"] + losses["contrastive"])
    image = learner.model.see(batch.seen[0])
    torch.testing.assert_close(losses["contrastive"], info_nce(learner.similarity(image, ROWS[:2])))
    assert losses["caption"] > 1


@pytest.mark.parametrize(
    "learner",
    [objective(), objective("seed", **SMALL_SEED)],
    ids=["prefix", "single readout"],
)
def test_a_text_is_embedded_alike_beside_any_others_and_any_image(learner: CaptionContrastive) -> None:
    one, other = (learner.model.see(torch.randn(1, 3, 32, 32)) for _ in range(2))
    together = learner.similarity(one, ROWS)[0]
    alone = torch.cat([learner.similarity(one, [row])[0] for row in ROWS])
    torch.testing.assert_close(together, alone)
    assert len(set(together.tolist())) == len(ROWS)
    assert not torch.allclose(together, learner.similarity(other, ROWS)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_text_is_read_as_the_model_reads_its_text(bidirectional: bool) -> None:
    learner = objective("seed", **SMALL_SEED) if bidirectional else objective()
    model, head = learner.model, learner.model.contrastive
    assert head is not None
    image, fused = model.see(torch.randn(1, 3, 32, 32)), model.fused(torch.tensor(ROWS[:1]), None)
    x_BTD = model.run(fused.bidirectional() if bidirectional else fused)
    by_hand = head(head.embed_image(image), head.embed_text(x_BTD, None))
    torch.testing.assert_close(learner.similarity(image, ROWS[:1]), by_hand)


def test_a_caption_as_long_as_the_context_is_compared() -> None:
    learner = objective(**{"text.vocab_size": 40, "text.max_length": 4})
    image = learner.model.see(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(learner.similarity(image, [(1, 5, 6, 7, 8)]), learner.similarity(image, [(1, 5, 6, 7)]))


def test_a_run_learns_both_and_matched_pairs_come_out_on_top(squares: Path) -> None:
    trainer = Trainer(options(squares))
    events = [event for event in trainer.run() if isinstance(event, Stepped)]
    first, last = events[0], [event for event in events if event.logged][-1]
    assert last.loss < 0.5 * first.loss
    assert last.parts["caption"] < 0.3 * first.parts["caption"]
    # Four squares of a colour share their captions; no model tells those apart.
    assert last.parts["contrastive"] < math.log(4) + 0.15 < first.parts["contrastive"]
    captioner = Captioner.load(squares.parent / "out", device="cpu")
    learner, tokenizer = (
        CaptionContrastive(captioner.model, captioner.model.see, label_smoothing=0.0),
        captioner.tokenizer,
    )
    assert tokenizer is not None
    texts = [f"A {colour} square." for colour in ("red", "green", "blue")]
    rows = [(tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id) for text in texts]
    image = captioner.see([captioner.read(squares / f"{index}.png") for index in range(6)])
    assert learner.similarity(image, rows).argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert captioner.caption([squares / "0.png"], prompt="A")[0].text == "A red square."


def test_both_parts_are_logged_and_the_score_is_that_of_captions(squares: Path) -> None:
    list(Trainer(options(squares, steps=2, val=(str(squares),), eval_every=2)).run())
    train, scored = (json.loads(line) for line in (squares.parent / "out/metrics.jsonl").read_text().splitlines())
    assert list(train) == ["step", "kind", "loss", "caption", "contrastive", "lr", "images_per_s"]
    assert train["loss"] == pytest.approx(2 * train["caption"] + train["contrastive"])
    figures = ["cider", "cider_plain", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"]
    assert list(scored) == ["step", "kind", *figures, "intervals", "samples"]


def test_a_new_model_gets_a_shared_space_of_512_unless_its_config_says_otherwise(squares: Path) -> None:
    for settings, width in (({}, 512), ({"contrastive_width": 7}, 7)):
        trainer = Trainer(options(squares, settings=settings))
        assert trainer.model.contrastive is not None
        assert trainer.model.contrastive.image.weight.shape == (width, 32)


def test_a_trained_model_without_the_head_gets_one_and_keeps_the_rest(squares: Path) -> None:
    list(Trainer(options(squares, objective="caption", steps=2)).run())
    run = options(squares, preset=None, init=str(squares.parent / "out"), out=squares.parent / "tuned", steps=2)
    trainer = Trainer(run)
    before = load_file(squares.parent / "out/model.safetensors")
    state = trainer.model.state_dict()
    assert all(torch.equal(before[name], state[name]) for name in before)
    assert trainer.model.contrastive is not None
    start = trainer.model.contrastive.image.weight.clone()
    list(trainer.run())
    assert not torch.equal(start, trainer.model.contrastive.image.weight)
    assert "contrastive.log_scale" in load_file(squares.parent / "tuned/model.safetensors")


def test_a_trained_model_is_tuned_with_the_dropout_asked_for(squares: Path) -> None:
    list(Trainer(options(squares, objective="caption", steps=1)).run())
    run = options(squares, preset=None, init=str(squares.parent / "out"), out=squares.parent / "tuned", dropout=0.3)
    assert {m.p for m in Trainer(run).model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_cached_features_serve_both_parts(squares: Path) -> None:
    losses = []
    for cached in (False, True):
        run = options(
            squares, out=squares.parent / f"{cached}", freeze="vision", cache_features=cached, dropout=0.0, steps=3
        )
        losses.append([event.loss for event in Trainer(run).run() if isinstance(event, Stepped)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_one_image_has_nothing_to_be_told_from(squares: Path) -> None:
    with pytest.raises(UsageError, match=r"--objective caption\+contrastive, --batch-size 1"):
        options(squares, batch_size=1)
    for file in squares.iterdir():
        if file.stem != "3":
            file.unlink()
    with pytest.raises(UsageError, match=r"--objective caption\+contrastive, 1 training image"):
        Trainer(options(squares))
    assert not (squares.parent / "out").exists()
