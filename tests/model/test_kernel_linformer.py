"""Attention over learned mixtures. B batch, H heads, G heads of keys, Q queries, K keys, R mixtures, E head width."""

import pytest
import torch
from torch import Tensor

from mmt_cli.model.kernels import FullAttention, Linformer
from mmt_cli.model.mask import Segment, Tokens, Visibility

CPU = torch.device("cpu")


def _qkv(length: int, shared: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 8, generator=generator) for heads in (4, shared, shared))
    return q, k, v


def _image(length: int) -> Visibility:
    return Visibility.of_image(length, None, CPU)


@pytest.mark.parametrize("shared", [4, 2, 1])
def test_it_attends_to_mixtures_of_keys_and_reads_mixtures_of_values(shared: int) -> None:
    q_BHQE, k_BGKE, v_BGKE = _qkv(11, shared)
    kernel = Linformer(rank=5, num_tokens=11)
    expected = torch.empty_like(q_BHQE)
    for row in range(2):
        for head in range(4):
            k_KE, v_KE = (x[row, head // (4 // shared)] for x in (k_BGKE, v_BGKE))
            mixed_k_RE = torch.stack([(weight_K[:, None] * k_KE).sum(dim=0) for weight_K in kernel.keys])
            mixed_v_RE = torch.stack([(weight_K[:, None] * v_KE).sum(dim=0) for weight_K in kernel.values])
            weights_QR = (q_BHQE[row, head] @ mixed_k_RE.T / 8**0.5).softmax(dim=-1)
            expected[row, head] = weights_QR @ mixed_v_RE
    torch.testing.assert_close(kernel(q_BHQE, k_BGKE, v_BGKE, _image(11), 0.0), expected)


def test_with_each_key_as_a_mixture_of_its_own_it_is_full_attention() -> None:
    q, k, v = _qkv(11)
    kernel = Linformer(rank=11, num_tokens=11)
    with torch.no_grad():
        for mixtures in (kernel.keys, kernel.values):
            mixtures.copy_(torch.eye(11))
    torch.testing.assert_close(kernel(q, k, v, _image(11), 0.0), FullAttention()(q, k, v, _image(11), 0.0))


def test_both_mixtures_learn_and_are_saved() -> None:
    q, k, v = _qkv(11)
    kernel = Linformer(rank=5, num_tokens=11)
    kernel(q, k, v, _image(11), 0.0).square().sum().backward()
    assert {name: tuple(tensor.shape) for name, tensor in kernel.state_dict().items()} == {
        "keys": (5, 11),
        "values": (5, 11),
    }
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in kernel.parameters())


def test_a_mixture_starts_as_large_as_a_token() -> None:
    torch.manual_seed(0)
    kernel = Linformer(rank=64, num_tokens=400)
    tokens_KE = torch.randn(400, 32)
    for mixtures in (kernel.keys, kernel.values):
        assert (mixtures @ tokens_KE).std().item() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(kernel.keys, kernel.values)


def test_another_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="mixes 12 tokens, found 11"):
        Linformer(rank=5, num_tokens=12)(*_qkv(11), _image(11), 0.0)


def test_what_hides_a_key_is_refused() -> None:
    step_BL = torch.arange(11)[None]
    tokens = Tokens(step_BL=step_BL, place_BL=step_BL, image_BL=torch.zeros(1, 11, dtype=torch.bool))
    causal = Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=11, causal=True),))
    biased = Visibility.of_image(11, None, CPU, key_bias_BK=torch.ones(1, 11))
    for visibility in (causal, biased):
        with pytest.raises(AssertionError, match="cannot hide"):
            Linformer(rank=5, num_tokens=11)(*_qkv(11), visibility, 0.0)
