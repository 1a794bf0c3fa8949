"""The loss over the vocabulary: the same with all logits at once and with a few at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mmt_cli.training import vocabulary_loss as module
from mmt_cli.training.vocabulary_loss import LOGITS_AT_ONCE, vocabulary_loss

POSITIONS, WIDTH, VOCABULARY = 37, 12, 53


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, forward and backward."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def head_of(width: int = WIDTH, vocabulary: int = VOCABULARY) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))


def positions(count: int = POSITIONS, width: int = WIDTH, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    target_P = torch.randint(vocabulary, (count,))
    target_P[::5] = -100
    return 3 * torch.randn(count, width, requires_grad=True).detach(), target_P


def gradients(loss: Tensor, head: nn.Module, x_PD: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x_PD, *head.parameters()]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 100, None])
def test_value_and_gradients_are_those_of_cross_entropy_over_all(chunk: int | None, smoothing: float) -> None:
    head = head_of()
    x_PD, target_P = positions()
    x_PD.requires_grad_()
    loss = vocabulary_loss(head, x_PD, target_P, label_smoothing=smoothing, chunk=chunk)
    plain = functional.cross_entropy(head(x_PD), target_P, label_smoothing=smoothing)
    assert loss.shape == ()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    pairs = zip(gradients(loss, head, x_PD), gradients(plain, head, x_PD), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_another_mark_for_no_target_holds() -> None:
    head, (x_PD, target_P) = head_of(), positions()
    target_P[target_P == -100] = 0
    found = vocabulary_loss(head, x_PD, target_P, ignore_index=0, chunk=8)
    torch.testing.assert_close(found, functional.cross_entropy(head(x_PD), target_P, ignore_index=0))


@pytest.mark.parametrize("chunk", [8, None])
def test_positions_may_count_more_or_less_and_against(chunk: int | None) -> None:
    head, (x_PD, target_P) = head_of(), positions()
    x_PD.requires_grad_()
    weight_P = torch.randn(POSITIONS)
    loss = vocabulary_loss(head, x_PD, target_P, weight_P=weight_P, chunk=chunk)
    plain = (weight_P * functional.cross_entropy(head(x_PD), target_P, reduction="none")).sum() / (target_P >= 0).sum()
    torch.testing.assert_close(loss, plain)
    for found, expected in zip(gradients(loss, head, x_PD), gradients(plain, head, x_PD), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [8, None])
def test_without_any_target_loss_and_gradients_are_zero(chunk: int | None) -> None:
    head, (x_PD, _) = head_of(), positions()
    x_PD.requires_grad_()
    loss = vocabulary_loss(head, x_PD, torch.full((POSITIONS,), -100), label_smoothing=0.1, chunk=chunk)
    assert float(loss.detach()) == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients(loss, head, x_PD))


def test_under_autocast_chunks_change_the_loss_by_rounding_alone() -> None:
    head, (x_PD, target_P) = head_of(), positions()
    x_PD.requires_grad_()
    found = []
    for chunk in (None, 7):
        with torch.autocast("cpu", torch.bfloat16):
            loss = vocabulary_loss(head, x_PD, target_P, label_smoothing=0.1, chunk=chunk)
        assert loss.dtype == torch.float32
        found.append([loss, *gradients(loss, head, x_PD)])
    for whole, chunked in zip(*found, strict=True):
        assert float((whole - chunked).detach().norm()) < 0.01 * float(whole.detach().norm())


def test_few_logits_are_taken_in_one_piece_that_is_not_computed_again() -> None:
    head, (x_PD, target_P) = head_of(), positions()
    rows: list[int] = []
    head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    vocabulary_loss(head, x_PD.requires_grad_(), target_P).backward()
    assert [count for count in rows if count] == [POSITIONS]


def test_the_size_of_a_chunk_follows_from_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 10 * VOCABULARY + 1)
    head, (x_PD, target_P) = head_of(), positions()
    rows: list[int] = []
    head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    vocabulary_loss(head, x_PD, target_P)
    assert [count for count in rows if count] == [10, 10, 10, 7]


def test_logits_of_a_long_text_are_never_all_there() -> None:
    length, vocabulary, width = 4_096, 32_000, 4
    head = head_of(width, vocabulary)
    x_PD, target_P = positions(length, width, vocabulary)
    x_PD.requires_grad_()
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with Largest() as largest, saved_tensors_hooks(note, lambda tensor: tensor):
        loss = vocabulary_loss(head, x_PD, target_P)
    assert vocabulary < largest.elements <= LOGITS_AT_ONCE < length * vocabulary
    assert max(saved) <= vocabulary * width
    with Largest() as largest:
        loss.backward()
    assert vocabulary < largest.elements <= LOGITS_AT_ONCE
