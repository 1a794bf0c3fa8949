"""Self-critical training: what samples are scored by, what the loss pulls at, and that a run learns and goes on."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.batches import Batch, encode_captions
from mmt_cli.training.events import Evaluated, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.metrics.cider import CiderScorer
from mmt_cli.training.objectives import self_critical
from mmt_cli.training.objectives.self_critical import Consensus, SelfCritical, advantages
from mmt_cli.training.options import TrainOptions

CAPTIONS = [["a red dog runs on grass", "the red dog"], ["two cats sit", "a cat sits on a mat"], ["a bird flies"]]


def learner(samples: int = 4, temperature: float = 1.0, **settings: Any) -> SelfCritical:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text for image in CAPTIONS for text in image] * 3, 300)
    config = preset("tiny", {"text.vocab_size": tokenizer.vocab_size, **settings})
    model = MultimodalTransformer(config)
    initialise(model)
    captioner = Captioner(
        model=model.eval(),
        tokenizer=tokenizer,
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(max_new_tokens=8, num_beams=3, end_token_ids=(tokenizer.eos_id,)),
    )
    return SelfCritical(
        captioner, model.see, Consensus(CAPTIONS), label_smoothing=0.0, samples=samples, temperature=temperature
    )


def batch_for(objective: SelfCritical) -> Batch:
    tokenizer = objective.captioner.tokenizer
    assert tokenizer is not None
    rows = encode_captions(
        CAPTIONS, tokenizer, 32, start=objective.captioner.encode_prompt(None).ids, end_id=tokenizer.eos_id
    )
    torch.manual_seed(1)
    return Batch(
        keys=("a", "b", "c"),
        rows=tuple(row for image in rows for row in image),
        images=torch.randn(3, 3, 32, 32),
        image_R=torch.tensor([0, 0, 1, 1, 2]),
    )


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_probabilities(objective: SelfCritical, batch: Batch, rows: Any) -> list[float]:
    """Of each row's words after the first token, read one row at a time."""
    found = []
    image = objective.see(batch.seen[0])
    for place, row in enumerate(rows):
        owner = place // (len(rows) // len(image))
        logits_TV = objective.model.read(torch.tensor([row[:-1]]), image[owner : owner + 1])[0]
        found.append(float(logits_TV.log_softmax(dim=-1).gather(1, torch.tensor(row[1:])[:, None]).sum().detach()))
    return found


# --- the reward


def test_the_reward_is_the_metric_with_the_end_as_a_word() -> None:
    samples = ["a red dog on grass", "two cats sit on a mat", "bird"]
    ends = "theend"
    metric = CiderScorer([[f"{text} {ends}" for text in image] for image in CAPTIONS])
    consensus = Consensus(CAPTIONS)
    for ended in (True, False):
        rows = metric.rows([f"{sample} {ends}" if ended else sample for sample in samples])
        found = [
            consensus.reward(
                consensus.sentence(sample, ended=ended), [consensus.sentence(text, ended=True) for text in image]
            )
            for sample, image in zip(samples, CAPTIONS, strict=True)
        ]
        assert found == pytest.approx([row[0] for row in rows])


def test_a_sentence_that_stops_too_early_or_never_scores_less_than_the_whole() -> None:
    consensus = Consensus(CAPTIONS)
    references = [consensus.sentence(text, ended=True) for text in CAPTIONS[0]]

    def reward(text: str, *, ended: bool = True) -> float:
        return consensus.reward(consensus.sentence(text, ended=ended), references)

    whole = reward("a red dog runs on grass")
    assert reward("a red dog runs on grass", ended=False) < whole
    assert reward("a red dog runs on") < whole
    assert reward("a red dog runs on grass on grass on grass", ended=False) < reward(
        "a red dog runs on grass", ended=False
    )


def test_a_word_of_the_text_is_never_taken_for_the_end() -> None:
    consensus = Consensus(CAPTIONS)
    vector = consensus.sentence("the dog <end>", ended=False)
    assert ("<end>",) not in vector.weights[0]
    assert ("end",) in vector.weights[0]


def test_an_advantage_is_the_reward_less_the_mean_of_the_others() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(advantages(reward), torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


# --- the samples


def test_draws_depend_on_the_generator_alone() -> None:
    objective = learner()
    batch = batch_for(objective)
    image = objective.see(batch.seen[0])
    rows, reward = objective.draw(image, batch, draw(3))
    torch.manual_seed(99)
    again, reward_again = objective.draw(image, batch, draw(3))
    assert rows == again
    assert torch.equal(reward, reward_again)
    assert objective.draw(image, batch, draw(4))[0] != rows
    assert len(rows) == 12
    assert reward.shape == (3, 4)
    assert len(set(rows)) > 4


def test_samples_are_drawn_plainly_without_dropout_and_leave_the_model_as_it_was() -> None:
    objective = learner(**{"text.block.dropout": 0.5})
    batch = batch_for(objective)
    expected = objective.draw(objective.see(batch.seen[0]), batch, draw())[0]
    objective.train()
    objective.model.vision.eval()
    found = objective.draw(objective.see(batch.seen[0]), batch, draw())[0]
    assert found == expected
    assert objective.model.blocks.training
    assert not objective.model.vision.training
    assert (objective.drawing.num_beams, objective.drawing.temperature) == (1, 1.0)


def test_the_references_are_the_batch_s_own_rows_and_a_cut_one_has_no_end() -> None:
    objective = learner()
    batch = batch_for(objective)
    cut = (batch.rows[0][:-1], *batch.rows[1:])
    found = objective._references(dataclasses.replace(batch, rows=cut))
    assert [len(image) for image in found] == [2, 2, 1]
    consensus = objective.consensus
    expected = [consensus.sentence(text, ended=text != CAPTIONS[0][0]) for image in CAPTIONS for text in image]
    assert [vector.weights for image in found for vector in image] == [vector.weights for vector in expected]


# --- the loss


def test_the_loss_is_minus_the_advantage_times_the_sum_of_log_probabilities() -> None:
    objective = learner()
    batch = batch_for(objective)
    image = objective.see(batch.seen[0])
    rows, reward = objective.draw(image, batch, draw())
    advantage = advantages(reward) + 0.5
    loss = objective.policy_loss(image, rows, advantage, start=batch.start)
    by_hand = log_probabilities(objective, batch, rows)
    expected = -sum(a * p for a, p in zip(advantage.flatten().tolist(), by_hand, strict=True)) / 12
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_what_is_learned_is_the_distribution_that_was_drawn_from() -> None:
    """Logits over 0.5 are those of a model whose last norm is twice as large: same draws, same loss."""
    cool, sharp = learner(temperature=0.5), learner()
    with torch.no_grad():
        sharp.model.head.norm.weight *= 2
        sharp.model.head.norm.bias *= 2
    batch = batch_for(cool)
    rows, reward = cool.draw(cool.see(batch.seen[0]), batch, draw(3))
    assert rows == sharp.draw(sharp.see(batch.seen[0]), batch, draw(3))[0]
    losses = [o.policy_loss(o.see(batch.seen[0]), rows, advantages(reward) + 0.5, start=1) for o in (cool, sharp)]
    torch.testing.assert_close(losses[0], losses[1])
    assert float(losses[0]) != pytest.approx(
        float(learner().policy_loss(cool.see(batch.seen[0]), rows, advantages(reward) + 0.5, start=1)), rel=1e-3
    )


def test_a_step_makes_the_better_sample_likelier_and_the_worse_one_less_likely() -> None:
    objective = learner(samples=2)
    batch = batch_for(objective)
    tokenizer = objective.captioner.tokenizer
    assert tokenizer is not None
    rows = [
        (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)
        for text in ("a red dog", "the mat", "two cats", "grass", "a bird", "a red")
    ]
    advantage = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    before = log_probabilities(objective, batch, rows)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.02)
    objective.policy_loss(objective.see(batch.seen[0]), rows, advantage, start=1).backward()
    optimizer.step()
    after = log_probabilities(objective, batch, rows)
    gained = [now - then for now, then in zip(after, before, strict=True)]
    for image, (first, second) in enumerate(zip(gained[::2], gained[1::2], strict=True)):
        better, worse = (first, second) if advantage[image, 0] > 0 else (second, first)
        assert better - worse > 0.1


def test_alike_samples_teach_nothing_but_the_data_s_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_critical, "CAPTION_WEIGHT", 0.0)
    objective = learner()
    batch = batch_for(objective)
    monkeypatch.setattr(objective.consensus, "reward", lambda *_: 3.0)
    losses = objective(batch, draw())
    assert float(losses["reward"]) == 300.0
    losses["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


def test_the_loss_is_made_of_the_policy_and_a_little_cross_entropy() -> None:
    objective = learner()
    batch = batch_for(objective)
    losses = objective(batch, draw(5))
    image = objective.see(batch.seen[0])
    generator = draw(5)
    rows, reward = objective.draw(image, batch, generator)
    policy = objective.policy_loss(image, rows, advantages(reward), start=batch.start)
    one_each = batch.one_caption_each(generator)
    assert len(one_each.rows) == 3 < len(batch.rows)
    caption = objective.caption_loss(image, one_each, generator)
    assert list(losses) == ["loss", "reward", "caption"]
    torch.testing.assert_close(losses["loss"], policy + self_critical.CAPTION_WEIGHT * caption)
    torch.testing.assert_close(losses["caption"], caption)
    assert float(losses["reward"]) == pytest.approx(100 * float(reward.mean()))
    assert objective.weight(batch) == 3


def test_under_autocast_every_weight_that_reads_a_sample_gets_a_gradient() -> None:
    def gradients(*, autocast: bool) -> dict[str, torch.Tensor]:
        objective = learner()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(batch_for(objective), draw())["loss"]
        loss.backward()
        return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}

    assert gradients(autocast=True).keys() == gradients(autocast=False).keys()


def test_the_rewarded_word_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_critical, "CAPTION_WEIGHT", 0.0)
    objective = learner(samples=6)
    batch = batch_for(objective)
    monkeypatch.setattr(objective, "_reward", lambda caption, _: float("cat" in caption.text))
    optimizer, generator = torch.optim.Adam(objective.parameters(), lr=1e-2), draw()
    rewards = []
    for _ in range(60):
        losses = objective(batch, generator)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        rewards.append(float(losses["reward"]))
    assert sum(rewards[:5]) / 5 < 30
    assert sum(rewards[-10:]) / 10 > 80


# --- runs


def options(squares: Path, out: str, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / out,
        "batch_size": 12,
        "steps": 25,
        "eval_every": 100,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


@pytest.fixture
def start(squares: Path) -> Path:
    """A model that has begun to learn what colour squares have."""
    list(Trainer(options(squares, "start", preset="tiny")).run())
    return squares.parent / "start"


@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "features"])
def test_a_run_raises_the_reward_and_its_parts_are_logged(squares: Path, start: Path, *, cached: bool) -> None:
    changes = {"cache_features": cached, "freeze": "vision" if cached else "none", "val": (str(squares),)}
    run = options(squares, "out", init=str(start), objective="scst", steps=30, lr=2e-3, log_every=1, **changes)
    events = list(Trainer(run).run())
    rewards = [event.parts["reward"] for event in events if isinstance(event, Stepped)]
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])
    assert [event for event in events if isinstance(event, Evaluated)][-1].scores.rank > 0
    lines = [json.loads(line) for line in (squares.parent / "out/metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["step", "kind", "loss", "reward", "caption", "lr", "images_per_s"]
    assert lines[-1]["kind"] == "eval"


def test_a_run_that_was_cut_ends_with_the_same_weights_as_one_that_was_not(squares: Path, start: Path) -> None:
    common = {"init": str(start), "objective": "scst", "steps": 6, "save_every": 2, "dropout": 0.1, "batch_size": 5}

    def digest(name: str) -> str:
        return hashlib.sha256((squares.parent / name / "model.safetensors").read_bytes()).hexdigest()

    list(Trainer(options(squares, "whole", **common)).run())
    events = Trainer(options(squares, "cut", **common)).run()
    for event in events:
        if isinstance(event, Stepped) and event.step == 3:
            events.close()  # type: ignore[attr-defined]
            break
    list(Trainer(options(squares, "cut", **common, resume="latest")).run())
    assert digest("cut") == digest("whole")
    assert digest("whole") != digest("start")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "tiny"}, r"--objective scst, no --init\); train with --objective caption first"),
        ({"init": "mini", "parallel": "fsdp"}, r"--objective scst, --parallel fsdp"),
    ],
    ids=["random", "sharded"],
)
def test_what_cannot_be_learned_so_is_refused(squares: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(squares, "out", objective="scst", **changes)


def test_a_model_with_a_single_readout_is_refused(squares: Path) -> None:
    small = {"img_size": 32, "patch_size": 16, "d_model": 16, "num_heads": 2, "num_layers": 1}
    list(Trainer(options(squares, "seed", preset="seed", settings=small, steps=1)).run())
    with pytest.raises(UsageError, match="a single readout"):
        Trainer(options(squares, "out", init=str(squares.parent / "seed"), objective="scst"))
