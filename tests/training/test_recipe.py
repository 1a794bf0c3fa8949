"""Options of the recipe: what each does to steps and weights."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DivergedError, UsageError
from mmt_cli.training.evaluate import Scores
from mmt_cli.training.events import Evaluated, Stepped, Stopped
from mmt_cli.training.learner import Learner
from mmt_cli.training.loop import Trainer
from mmt_cli.training.lora import Adapted, merged
from mmt_cli.training.optim import learning_rate
from mmt_cli.training.options import TrainOptions

Weights = dict[str, Tensor]


def options(squares: Path, out: str = "out", **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / out,
        "preset": "tiny",
        "steps": 4,
        "batch_size": 6,
        "lr": 5e-3,
        "warmup": 0,
        "eval_every": 1000,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def finish(run: TrainOptions) -> list[Any]:
    return list(Trainer(run).run())


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def snapshot(trainer: Trainer) -> Weights:
    return {name: p.detach().clone() for name, p in trainer.learner.objective.named_parameters()}


# --- rates and sizes


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_a_schedule_says_how_the_rate_falls(squares: Path, schedule: Any, middle: float, last: float) -> None:
    run = options(squares, lr=1.0, warmup=10, schedule=schedule)
    rates = [learning_rate(step, run, 110) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert (rates[59], rates[-1]) == pytest.approx((middle, last), abs=0.02)


def test_linear_and_cosine_are_not_the_same(squares: Path) -> None:
    quarter = [learning_rate(26, options(squares, lr=1.0, schedule=name), 100) for name in ("cosine", "linear")]
    assert quarter == pytest.approx([0.86, 0.75], abs=0.02)


@pytest.mark.parametrize("objective", ["caption", "language"])
def test_batches_together_give_the_step_of_one_large_batch(squares: Path, objective: Any) -> None:
    """Texts of unlike lengths: a mean of means would be another loss."""
    for index in range(12):
        (squares / f"{index}.txt").write_text("A red square " * (1 + index % 4) + ".\n", encoding="utf-8")
    losses = []
    for size, together in ((8, 1), (2, 4)):
        run = options(squares, f"{size}", objective=objective, batch_size=size, grad_accum=together)
        losses.append([event.loss for event in finish(run) if isinstance(event, Stepped)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    large, small = weights(squares.parent / "8"), weights(squares.parent / "2")
    for name in large:
        if name.endswith("qkv.bias"):
            # Attention does not depend on the keys' third: its gradient is rounding, of which AdamW makes whole steps.
            for found in (large, small):
                found[name].view(3, -1)[1] = 0
        torch.testing.assert_close(large[name], small[name], rtol=1e-5, atol=1e-4)


def test_an_epoch_has_as_many_steps_as_it_has_groups_of_batches(squares: Path) -> None:
    trainer = Trainer(options(squares, steps=None, epochs=2, batch_size=2, grad_accum=4))
    assert (trainer.total_steps, trainer.eval_every) == (4, 1000)  # 12 images: 8 and 4, twice
    steps = [event for event in trainer.run() if isinstance(event, Stepped)]
    assert (len(steps), trainer.progress.position.epoch, trainer.progress.position.taken) == (4, 1, 12)


# --- the average


def test_the_average_is_what_is_saved_and_follows_its_formula(squares: Path) -> None:
    trainer = Trainer(options(squares, ema=0.2, steps=3))
    name = "model.text.tokens.weight"
    expected = snapshot(trainer)[name]
    for event in trainer.run():
        if isinstance(event, Stepped):
            decay = min(0.2, (1 + event.step) / (10 + event.step))
            expected = decay * expected + (1 - decay) * trainer.learner.trained[name].detach()
    saved = weights(squares.parent / "out")["text.tokens.weight"]
    assert torch.allclose(saved, expected, atol=1e-6)
    assert not torch.allclose(saved, trainer.learner.trained[name], atol=1e-5)


def test_the_average_is_what_is_scored(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(options(squares, ema=0.9, val=(str(squares),)))
    seen: list[Tensor] = []

    def score() -> Scores:
        seen.append(trainer.model.text.tokens.weight.detach().clone())
        return Scores(figures={"cider": 1.0}, rank=1.0)

    monkeypatch.setattr(trainer.task, "score", score)
    list(trainer.run())
    assert torch.equal(seen[0], weights(squares.parent / "out")["text.tokens.weight"])
    assert not torch.equal(seen[0], trainer.model.text.tokens.weight)


# --- adapters


def test_adapters_alone_learn_and_the_folder_holds_a_plain_model(squares: Path) -> None:
    trainer = Trainer(options(squares, lora=3, steps=3))
    before = snapshot(trainer)
    list(trainer.run())
    after = snapshot(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainer.learner.trained)
    assert {name.rpartition(".")[2] for name in moved} == {"lora_a", "lora_b"}
    saved = weights(squares.parent / "out")
    assert not any("lora" in name for name in saved)
    name = "blocks.0.attention.inner.qkv"
    low, high = (after[f"model.{name}.lora_{part}"] for part in "ab")
    assert torch.allclose(saved[f"{name}.weight"], before[f"model.{name}.weight"] + 2 * high @ low, atol=1e-6)
    assert torch.equal(saved["blocks.0.mlp.inner.up.weight"], before["model.blocks.0.mlp.inner.up.weight"])


def test_a_model_with_adapters_and_its_merged_one_write_the_same(squares: Path, tools: Any) -> None:
    trainer = Trainer(options(squares, lora=3, lora_targets=("qkv", "blocks.*.up")))
    with torch.no_grad():
        for module in trainer.model.modules():
            if isinstance(module, Adapted):
                module.lora_b.normal_()
    model = trainer.model.eval()
    ids_BT, pixels_BCHW = tools.random_ids(2, 6), tools.random_pixels(model.config, 2)
    kept = snapshot(trainer)
    apart = model(ids_BT, pixels_BCHW)
    with merged(model):
        assert torch.allclose(model(ids_BT, pixels_BCHW), apart, atol=1e-4)
        assert not any(isinstance(module, Adapted) for module in model.modules())
    assert all(torch.equal(kept[name], tensor) for name, tensor in snapshot(trainer).items())
    assert torch.equal(model(ids_BT, pixels_BCHW), apart)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ((), {"blocks.0.attention.inner.qkv", "blocks.0.attention.inner.out"}),
        (("up",), {"blocks.0.mlp.inner.up", "vision.blocks.0.mlp.inner.up"}),
        (("vision.*.qkv", "blocks.0.mlp.*.down"), {"vision.blocks.0.attention.inner.qkv", "blocks.0.mlp.inner.down"}),
    ],
    ids=["default", "a last part", "whole names"],
)
def test_targets_are_names_or_their_last_parts(squares: Path, targets: tuple[str, ...], adapted: set[str]) -> None:
    trainer = Trainer(options(squares, lora=2, lora_targets=targets, settings={"text.num_layers": 1}))
    assert {name for name, module in trainer.model.named_modules() if isinstance(module, Adapted)} == adapted


def test_a_frozen_part_gets_no_adapter(squares: Path) -> None:
    trainer = Trainer(options(squares, lora=2, lora_targets=("qkv",), freeze="vision"))
    names = {name for name, module in trainer.model.named_modules() if isinstance(module, Adapted)}
    assert names == {"blocks.0.attention.inner.qkv", "blocks.1.attention.inner.qkv"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": 2, "lora_targets": ("query",)}, r"--lora-targets 'query', known: down, out, qkv, up"),
        ({"lora": 999}, r"--lora 999, blocks.0.attention.inner.qkv 96 x 32"),
        ({"lora": 2, "lora_targets": ("vision.*.up",), "freeze": "vision"}, "--freeze"),
        ({"lora_targets": ("qkv",)}, "no --lora"),
        ({"lora": 2, "objective": "masked"}, "--objective masked"),
    ],
    ids=["no such name", "too large", "all frozen", "targets alone", "objective"],
)
def test_adapters_that_cannot_be_are_refused(squares: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Trainer(options(squares, **changes))


# --- numbers that are none


def poison(trainer: Trainer, name: str, value: float, step: int) -> None:
    """Make one gradient no number, or the loss itself, at a step."""
    objective, count = trainer.learner.objective, 0
    forward = objective.forward

    def poisoned(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        losses = dict(forward(batch, generator))
        if count == step and name == "loss":
            losses["loss"] = losses["loss"] * value
        elif count == step:
            losses["loss"].register_hook(lambda gradient: gradient * value)
        return losses

    objective.forward = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_no_number_ends_the_run_with_everything_as_before_that_step(squares: Path, name: str, value: float) -> None:
    trainer = Trainer(options(squares, steps=9, save_every=2, ema=0.9))
    poison(trainer, name, value, step=4)
    found: list[Weights] = []
    with pytest.raises(DivergedError) as caught:
        found.extend(trainer.learner.tensors() for event in trainer.run() if isinstance(event, Stepped))
    assert len(found) == 3
    now = trainer.learner.tensors()
    assert all(torch.equal(now[name], found[-1][name]) for name in now if not name.startswith("random."))
    kept = trainer.folder.checkpoints.whole()
    assert [path.name for path in kept] == ["step-000002"]
    assert "diverged at step 4" in str(caught.value)
    assert f"--init {kept[0]}" in str(caught.value)
    [line] = [line for line in lines(squares.parent / "out") if line["kind"] == "diverged"]
    assert (line["step"], len(line["images"])) == (4, 6)
    assert all(key in str(caught.value) for key in line["images"])


def test_float16_skips_steps_whose_scaled_gradients_overflow_and_learns_from_the_next(squares: Path) -> None:
    trainer = Trainer(options(squares, precision="float16", steps=3, ema=0.9))
    poison(trainer, "gradient", math.inf, step=2)
    found = [(snapshot(trainer), 0.0)]
    stepped = (event for event in trainer.run() if isinstance(event, Stepped))
    found.extend((snapshot(trainer), trainer.learner.scaler.get_scale()) for _ in stepped)
    same = [all(torch.equal(a[name], b[name]) for name in a) for (a, _), (b, _) in itertools.pairwise(found)]
    assert same == [False, True, False]
    assert found[2][1] == found[1][1] / 2


def test_float16_ends_the_run_where_no_scale_is_small_enough(squares: Path) -> None:
    trainer = Trainer(options(squares, precision="float16", steps=3))
    trainer.learner.scaler.load_state_dict({**trainer.learner.scaler.state_dict(), "scale": 1.0})
    poison(trainer, "gradient", math.inf, step=1)
    with pytest.raises(DivergedError, match="step 1"):
        list(trainer.run())


def test_float16_computes_in_float16(squares: Path) -> None:
    trainer = Trainer(options(squares, precision="float16"))
    dtypes: set[torch.dtype] = set()
    hook = trainer.model.blocks[0]["mlp"].inner.up  # type: ignore[index, union-attr]
    hook.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    next(event for event in trainer.run() if isinstance(event, Stepped))
    assert dtypes == {torch.float16}


# --- the rest


def test_compiling_changes_no_loss_but_for_rounding_and_captions_run_as_written(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    written = nn.Module._call_impl

    def compile_part(self: nn.Module) -> None:
        def call(*inputs: Any) -> Any:
            compiled.append(type(self).__name__)
            return written(self, *inputs)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_part)
    plain = [event.loss for event in finish(options(squares, "plain")) if isinstance(event, Stepped)]
    trainer = Trainer(options(squares, compile=True, val=(str(squares),)))
    losses = []
    for event in trainer.run():
        if isinstance(event, Stepped):
            losses.append(event.loss)
            assert compiled == ["PatchTower", "Block", "Block"]
        if isinstance(event, Evaluated):
            assert compiled == []
        compiled.clear()
    assert losses == plain


@pytest.mark.slow
def test_compiled_blocks_learn_as_plain_ones_do(squares: Path) -> None:
    plain, compiled = (
        [event.loss for event in finish(options(squares, str(on), compile=on)) if isinstance(event, Stepped)]
        for on in (False, True)
    )
    assert plain == pytest.approx(compiled, abs=1e-3)


def test_compiling_without_a_compiler_is_refused(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"no C\+\+ compiler \(--compile, looked for no-such-compiler\)"):
        Trainer(options(squares, compile=True))


def test_a_run_ends_after_so_many_scores_without_a_new_best(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter((1.0, 3.0, 2.0, 3.0, 9.0))
    run = options(squares, val=(str(squares),), steps=20, eval_every=2, early_stop=2)
    trainer = Trainer(run)
    monkeypatch.setattr(trainer.task, "score", lambda: Scores(figures={"cider": 1.0}, rank=next(ranks)))
    events = list(trainer.run())
    assert isinstance(events[-1], Stopped) and not events[-1].wished
    assert [event.step for event in events if isinstance(event, Stepped)][-1] == 8
    again = Trainer(options(squares, val=(str(squares),), steps=20, eval_every=2, early_stop=2, resume="auto"))
    assert not [event for event in again.run() if isinstance(event, Stepped)]


def test_stopping_early_needs_scores(squares: Path) -> None:
    with pytest.raises(UsageError, match=r"--early-stop 2, no --val"):
        options(squares, early_stop=2)


def test_the_optimizer_is_fused(squares: Path) -> None:
    trainer = Trainer(options(squares))
    assert isinstance(trainer.learner, Learner)
    assert trainer.learner.optimizer.defaults["fused"] is True


def test_the_card_tells_data_recipe_figures_and_terms(squares: Path) -> None:
    finish(options(squares, val=(str(squares),), ema=0.9, schedule="linear", grad_accum=2))
    card = (squares.parent / "out/README.md").read_text(encoding="utf-8")
    wanted = ["- squares", "12 images, 24 captions", "- schedule: linear", "- batch size: 12", "weights: 0.9"]
    wanted += ["- CIDEr-D: ", "## Terms"]
    assert [part for part in wanted if part not in card] == []
    tuned = options(squares, "tuned", preset=None, init=str(squares.parent / "out"))
    finish(tuned)
    assert f"those of {squares.parent / 'out'}" in (tuned.out / "README.md").read_text(encoding="utf-8")


def test_an_adapted_checkpoint_is_a_start_like_any_other(squares: Path) -> None:
    finish(options(squares, lora=2))
    finish(options(squares, "tuned", preset=None, init=str(squares.parent / "out"), lora=2))
    captioner = Captioner.load(squares.parent / "tuned", device="cpu")
    assert len(captioner.caption([squares / "0.png"])) == 1


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
