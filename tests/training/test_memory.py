"""Recomputed blocks: the same gradients in less memory, and nothing else changed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmt_cli.model.block import Block
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.events import Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.memory import checkpoint_blocks
from mmt_cli.training.options import TrainOptions

LAYERS = 6
BLOCK = {"width": 16, "num_heads": 2, "mlp_width": 64, "dropout": 0.3}


@pytest.fixture
def config() -> ModelConfig:
    """Blocks in tower, connector and decoder, which attends to the image; dropout in all."""
    changes: dict[str, Any] = {
        "connector": {"block": BLOCK, "num_layers": 1},
        "fusion": {"kind": "cross"},
        "text.num_layers": LAYERS,
        "text.vocab_size": 50,
    }
    changes |= {f"{part}.block.{key}": value for part in ("vision", "text") for key, value in BLOCK.items()}
    return preset("tiny", changes)


def build(config: ModelConfig, tools: Any, *, recomputed: bool) -> MultimodalTransformer:
    model = MultimodalTransformer(config)
    tools.strengthen(model)
    if recomputed:
        checkpoint_blocks(model)
    return model.train()


def loss_of(model: MultimodalTransformer, tools: Any) -> Tensor:
    ids_BT = tools.random_ids(3, 12) % 50
    return model(ids_BT, tools.random_pixels(model.config, 3)).square().mean()


@contextmanager
def saved_bytes() -> Iterator[Callable[[], int]]:
    """Count the bytes that autograd keeps, each memory once, weights left out."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not tensor.is_leaf:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def blocks_of(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def test_gradients_are_the_same_to_the_bit_with_dropout_on_over_several_steps(config: ModelConfig, tools: Any) -> None:
    found = []
    for recomputed in (False, True):
        model = build(config, tools, recomputed=recomputed)
        torch.manual_seed(5)
        losses = []
        for _ in range(2):  # the second step draws what the first has left of the random stream
            loss = loss_of(model, tools)
            loss.backward()
            losses.append(float(loss.detach()))
        found.append((losses, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (plain, plain_gradients), (again, again_gradients) = found
    assert plain == again
    assert plain[0] != plain[1]
    assert all(gradient is not None for gradient in plain_gradients.values())
    assert all(torch.equal(plain_gradients[name], again_gradients[name]) for name in plain_gradients)


def test_gradients_are_the_same_under_autocast(config: ModelConfig, tools: Any) -> None:
    gradients = []
    for recomputed in (False, True):
        model = build(config, tools, recomputed=recomputed)
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, tools)
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_block_keeps_its_input_alone(config: ModelConfig, tools: Any) -> None:
    kept = []
    for recomputed in (False, True):
        model = build(config, tools, recomputed=recomputed)
        with saved_bytes() as count:
            loss_of(model, tools)
        kept.append(count())
    assert kept[1] < 0.2 * kept[0]


def test_blocks_of_tower_connector_and_decoder_run_again_in_the_backward_pass(config: ModelConfig, tools: Any) -> None:
    model = build(config, tools, recomputed=True)
    runs: list[str] = []
    names = {block: name for name, block in model.named_modules() if isinstance(block, Block)}
    for block, name in names.items():
        block["mlp"].register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    loss = loss_of(model, tools)
    forward = list(runs)
    assert sorted(forward) == sorted(names.values())
    assert {name.partition(".")[0] for name in forward} == {"vision", "connector", "blocks"}
    loss.backward()
    assert runs[len(forward) :] == forward[::-1]


def test_blocks_that_merge_tokens_run_again_too(tools: Any) -> None:
    config, found = preset("tiny", {"vision.merged_tokens": 3, "vision.num_layers": 2, "text.vocab_size": 50}), []
    for recomputed in (False, True):
        model = build(config, tools, recomputed=recomputed)
        runs: list[int] = []
        model.vision.blocks[0]["mlp"].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        loss_of(model, tools).backward()
        found.append((len(runs), [parameter.grad for parameter in model.parameters()]))
    assert [count for count, _ in found] == [1, 2]
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


def test_weight_names_stay_and_a_copy_runs_on_its_own_weights(config: ModelConfig, tools: Any) -> None:
    plain, recomputed = (build(config, tools, recomputed=flag) for flag in (False, True))
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    copied = copy.deepcopy(recomputed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    loss = loss_of(copied, tools)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(parameter.grad is None for parameter in recomputed.parameters())
    assert float(loss_of(recomputed, tools).detach()) > 0


def test_without_gradients_nothing_is_checkpointed_and_cached_decoding_stays(
    config: ModelConfig, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, recomputed = (build(config, tools, recomputed=flag).eval() for flag in (False, True))
    monkeypatch.setattr("mmt_cli.training.memory.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    ids_BT, pixels_BCHW = tools.random_ids(2, 6) % 50, tools.random_pixels(config, 2)
    found = []
    with torch.no_grad():
        for model in (plain, recomputed):
            logits_BV, cache = model.prefill(ids_BT[:, :3], model.see(pixels_BCHW), capacity=6)
            found += [logits_BV, model.step(ids_BT[:, 3:], cache)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_marking_twice_recomputes_once(config: ModelConfig, tools: Any) -> None:
    model = build(config, tools, recomputed=True)
    checkpoint_blocks(model)
    runs: list[int] = []
    blocks_of(model)[0]["mlp"].register_forward_pre_hook(lambda *_: runs.append(1))
    loss_of(model, tools).backward()
    assert len(runs) == 2


def test_the_option_trains_to_the_same_losses_with_less_kept(squares: Path) -> None:
    losses, kept = [], []
    for recomputed in (False, True):
        options = TrainOptions(
            data=(str(squares),),
            out=squares.parent / f"out{recomputed}",
            preset="tiny",
            settings={"text.num_layers": LAYERS},
            dropout=0.2,
            steps=3,
            batch_size=6,
            device="cpu",
            grad_checkpointing=recomputed,
        )
        with saved_bytes() as count:
            losses.append([event.loss for event in Trainer(options).run() if isinstance(event, Stepped)])
        kept.append(count())
    assert losses[0] == losses[1]
    assert kept[1] < 0.7 * kept[0]
