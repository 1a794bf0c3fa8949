"""Kernels that record change nothing of what a model says, and the weights are those that it used."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.inspection.flow import Mean, Rollout, TileRollout
from mmt_cli.inspection.recording import RecordingKernel, kernel_weights, recorded, softmax_weights
from mmt_cli.model.kernels import FullAttention, Kernel, Linformer, Performer, SlidingWindow, full_attention
from mmt_cli.model.mask import Segment, Tokens, Visibility, Window

HEADS, SHARED, LENGTH, WIDTH = 6, 2, 11, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def causal(length: int, **more: Any) -> Visibility:
    places = torch.arange(length)[None]
    tokens = Tokens(step_BL=places, place_BL=places, image_BL=torch.zeros(1, length, dtype=torch.bool))
    return Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=length, causal=True),), **more)


def heads() -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(1, HEADS, LENGTH, WIDTH),
        random(1, SHARED, LENGTH, WIDTH, seed=1),
        random(1, SHARED, LENGTH, WIDTH, seed=2),
    )


@pytest.mark.parametrize(
    ("kernel", "visibility"),
    [
        (FullAttention(), causal(LENGTH)),
        (FullAttention(), Visibility.of_image(LENGTH, None, torch.device("cpu"))),
        (FullAttention(), Visibility.of_image(LENGTH, None, torch.device("cpu"), random(1, LENGTH, seed=3))),
        (SlidingWindow(Window(image=1, text=3)), causal(LENGTH)),
        (Performer(head_width=WIDTH, features=16), causal(LENGTH)),
        (Linformer(rank=4, num_tokens=LENGTH), Visibility.of_image(LENGTH, None, torch.device("cpu"))),
    ],
    ids=["causal", "image", "key-bias", "window", "performer", "linformer"],
)
def test_what_a_recording_kernel_gives_is_what_its_kernel_gives(kernel: Kernel, visibility: Visibility) -> None:
    q, k, v = heads()
    kept: list[Tensor] = []
    with torch.no_grad():
        expected = kernel(q, k, v, visibility, 0.0)
        found = RecordingKernel(kernel, kept.append)(q, k, v, visibility, 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert [weights.shape for weights in kept] == [(1, HEADS, LENGTH, LENGTH)]


def test_softmax_weights_add_up_to_one_and_give_what_is_hidden_nothing() -> None:
    q, k, _ = heads()
    weights = softmax_weights(q, k, causal(LENGTH).mask())
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, HEADS, LENGTH))
    assert float(weights.triu(1).abs().max()) == 0.0


def test_half_precision_is_recorded_in_whole() -> None:
    q, k, v = (x.to(torch.bfloat16) for x in heads())
    kept: list[Tensor] = []
    found = RecordingKernel(FullAttention(), kept.append)(q, k, v, causal(LENGTH), 0.0)
    assert kept[0].dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, full_attention(q, k, v, causal(LENGTH).mask(), 0.0), rtol=0, atol=3e-2)


def test_weights_of_an_estimate_are_what_it_does_to_values() -> None:
    q, k, v = heads()
    kernel = Performer(head_width=WIDTH, features=16)
    weights = kernel_weights(kernel, q, k, causal(LENGTH))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, HEADS, LENGTH))
    given = weights @ v.repeat_interleave(HEADS // SHARED, dim=1)
    torch.testing.assert_close(given, kernel(q, k, v, causal(LENGTH), 0.0), rtol=0, atol=1e-5)


def test_no_model_speaks_otherwise_while_it_is_recorded(model: Any, tools: ModuleType) -> None:
    inner = getattr(model, "model", model)
    pixels, ids = tools.random_pixels(inner.config, 1), tools.random_ids(1, 6)
    names: list[str] = []
    with torch.no_grad():
        expected = model(ids, pixels)
        with recorded(inner, lambda name, weights: names.append(name)):
            found = model(ids, pixels)
        again = model(ids, pixels)
    # Many layers in a row make a little of the 1e-5 that a kernel may differ by.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(again, expected), "a kernel has not come back"
    layers = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    assert layers == set(range(inner.config.text.num_layers))


def test_kernels_come_back_when_a_reading_fails(tools: ModuleType) -> None:
    model = tools.build_model(tools.small_config("mini"))
    kernels = [module for module in model.modules() if isinstance(module, Kernel)]
    with pytest.raises(RuntimeError), recorded(model, lambda name, weights: None):
        raise RuntimeError
    assert [module for module in model.modules() if isinstance(module, Kernel)] == kernels


def test_a_mean_is_over_the_layers_and_heads_asked_for() -> None:
    layers = random(3, 1, 2, 4, 4).softmax(dim=-1)
    for layer, head, expected in (
        (None, None, layers.mean(dim=(0, 1, 2))),
        (1, None, layers[1, 0].mean(dim=0)),
        (None, 1, layers[:, 0, 1].mean(dim=0)),
        (2, 0, layers[2, 0, 0]),
    ):
        mean = Mean(layer, head)
        for index, weights in enumerate(layers):
            mean.take(f"{index}.attention.inner", weights)
            mean.take(f"{index}.cross_attention.inner", 1 - weights)
        torch.testing.assert_close(mean.own(), expected)
        torch.testing.assert_close(mean.memory(), 1 - expected)


def test_rollout_passes_on_half_of_everything_at_each_layer() -> None:
    a, b = (random(1, 2, 4, 4, seed=seed).softmax(dim=-1) for seed in (1, 2))
    rollout = Rollout(None)
    rollout.take("0.attention.inner", a)
    rollout.take("1.attention.inner", b)
    halves = [(weights[0].mean(dim=0) + torch.eye(4)) / 2 for weights in (a, b)]
    torch.testing.assert_close(rollout.own(), halves[1] @ halves[0])


def test_rollout_counts_the_memory_as_a_source_of_its_own() -> None:
    own, cross = random(1, 2, 4, 4, seed=1).softmax(dim=-1), random(1, 2, 4, 5, seed=2).softmax(dim=-1)
    rollout = Rollout(None)
    for layer in range(3):
        rollout.take(f"{layer}.attention.inner", own)
        rollout.take(f"{layer}.cross_attention.inner", cross)
    torch.testing.assert_close(rollout.own().sum(dim=1) + rollout.memory().sum(dim=1), torch.ones(4))
    assert 0.8 < float(rollout.memory().sum(dim=1).mean()) < 0.9  # 1 - 1/8 of it has crossed


def test_rollout_of_tiles_leaves_blocks_out_whose_tokens_the_text_does_not_see() -> None:
    tiles = TileRollout(tokens=3)
    seen = random(2, 2, 3, 3).softmax(dim=-1)
    tiles.take("vision.blocks.0", random(2, 2, 5, 5).softmax(dim=-1))
    tiles.take("connector.blocks.0", seen[:1])  # a picture in many tiles comes in parts
    tiles.take("connector.blocks.0", seen[1:])
    weights = random(1, 2, 3).softmax(dim=-1)
    half = (torch.eye(3) + seen.mean(dim=1)) / 2
    torch.testing.assert_close(tiles.through(weights), torch.einsum("rtn,tnm->rtm", weights, half))
