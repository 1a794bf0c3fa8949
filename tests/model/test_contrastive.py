"""Whole images and whole texts in one space."""

import math

import pytest
import torch

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.contrastive import ContrastiveHead


@pytest.fixture
def head() -> ContrastiveHead:
    torch.manual_seed(0)
    return ContrastiveHead(width=8, shared_width=5)


def test_embeddings_are_the_mapped_means_at_length_one(head: ContrastiveHead) -> None:
    x_BND = torch.randn(2, 6, 8)
    mapped = {"image": head.image.weight, "text": head.text.weight}
    found = {"image": head.embed_image(ImageTokens(x_BND=x_BND, grid=(2, 3))), "text": head.embed_text(x_BND, None)}
    for side, weight in mapped.items():
        by_hand = x_BND.sum(dim=1) / 6 @ weight.T
        torch.testing.assert_close(found[side], by_hand / by_hand.norm(dim=1, keepdim=True))
    assert not torch.allclose(found["image"], found["text"])


def test_padding_counts_for_nothing(head: ContrastiveHead) -> None:
    x_BTD = torch.randn(2, 6, 8)
    valid_BT = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    found = head.embed_text(x_BTD, valid_BT)
    torch.testing.assert_close(found[0], head.embed_text(x_BTD[:1], None)[0])
    torch.testing.assert_close(found[1], head.embed_text(x_BTD[1:, :2], None)[0])


def test_logits_are_cosines_times_a_scale_that_starts_at_one_by_0_07(head: ContrastiveHead) -> None:
    one, other = torch.eye(5)[0], torch.eye(5)[1]
    logits = head(torch.stack([one, other]), torch.stack([one, -other, other]))
    torch.testing.assert_close(logits, torch.tensor([[1.0, 0, 0], [0, -1, 1]]) / 0.07)


def test_the_scale_stays_at_100_or_less_and_can_come_back(head: ContrastiveHead) -> None:
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    logits = head(torch.eye(5)[:1], torch.eye(5)[:1])
    torch.testing.assert_close(logits, torch.tensor([[100.0]]))
    logits.sum().backward()
    assert head.log_scale.grad is not None and head.log_scale.grad > 0
    assert head.log_scale.item() == pytest.approx(math.log(100))


def test_half_precision_does_not_reach_the_comparison(head: ContrastiveHead) -> None:
    x_BND = torch.randn(2, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_BE = head.embed_image(ImageTokens(x_BND=x_BND, grid=None))
        text_BE = head.embed_text(x_BND, None)
        logits = head(image_BE, text_BE)
    assert {image_BE.dtype, text_BE.dtype, logits.dtype} == {torch.float32}
    torch.testing.assert_close(logits, head(image_BE, text_BE), rtol=0, atol=0)
