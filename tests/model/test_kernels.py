"""Full attention, and the choice of a kernel. B batch, H heads, G heads of keys, Q queries, K keys, E head width."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmt_cli.model import kernel_full
from mmt_cli.model.block_config import (
    BlockConfig,
    FullKernelConfig,
    KernelConfig,
    LinformerKernelConfig,
    PerformerKernelConfig,
    SlidingWindowKernelConfig,
)
from mmt_cli.model.kernels import (
    FullAttention,
    Linformer,
    Performer,
    SlidingWindow,
    build_kernel,
    full_attention,
)
from mmt_cli.model.mask import Segment, Tokens, Visibility, Window

KERNELS: list[KernelConfig] = [
    FullKernelConfig(),
    SlidingWindowKernelConfig(image_window=5, text_window=9),
    LinformerKernelConfig(rank=6),
    PerformerKernelConfig(features=20),
]


_fused = functional.scaled_dot_product_attention


def _block(kernel: KernelConfig) -> BlockConfig:
    return BlockConfig(width=32, num_heads=4, num_kv_heads=2, mlp_width=8, kernel=kernel)


def _qkv(queries: int, keys: int, heads: int = 4, shared: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, 8), (2, shared, keys, 8), (2, shared, keys, 8)]
    q_BHQE, k_BGKE, v_BGKE = (torch.randn(shape, generator=generator) for shape in shapes)
    return q_BHQE, k_BGKE, v_BGKE


def _causal(length: int) -> Visibility:
    step_BL = torch.arange(length)[None]
    tokens = Tokens(step_BL=step_BL, place_BL=step_BL, image_BL=torch.zeros(1, length, dtype=torch.bool))
    return Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=length, causal=True),))


def test_full_attention_weighs_visible_values_by_the_softmax_of_scaled_scores() -> None:
    q_BHQE, k_BHKE, v_BHKE = _qkv(7, 7)
    score_BHQK = q_BHQE @ k_BHKE.mT / 8**0.5
    hidden_QK = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = score_BHQK.masked_fill(hidden_QK, -torch.inf).softmax(dim=-1) @ v_BHKE
    found = FullAttention()(q_BHQE, k_BHKE, v_BHKE, _causal(7), 0.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["products", "products of some heads", "float32"])
@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("mask", [None, "one", "each", "added"])
def test_what_replaces_a_slow_fused_kernel_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, way: str, queries: int, shared: int, mask: str | None
) -> None:
    q_BHQE, k_BGKE, v_BGKE = _qkv(queries, 40, shared=shared)
    shape = (1 if mask == "one" else 2, 1, queries, 40)
    sees_B1QK = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask_B1QK = None if mask is None else torch.where(sees_B1QK, 1.5, -torch.inf) if mask == "added" else sees_B1QK
    expected = full_attention(q_BHQE, k_BGKE, v_BGKE, mask_B1QK, 0.0)
    monkeypatch.setattr(kernel_full, "has_small_products", lambda dtype: dtype is torch.float32)
    monkeypatch.setattr(kernel_full, "_FEW_NUMBERS", 2**18 if way == "float32" else 0)
    monkeypatch.setattr(kernel_full, "_SCORES_AT_ONCE", 3 * 40 * 40 if way == "products of some heads" else 2**20)
    dtypes = []

    def fused(q_BHQE: Tensor, *given: Any, **named: Any) -> Tensor:
        dtypes.append(q_BHQE.dtype)
        return _fused(q_BHQE, *given, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", fused)
    half_mask = mask_B1QK.bfloat16() if mask == "added" and mask_B1QK is not None else mask_B1QK
    with torch.inference_mode():
        found = full_attention(q_BHQE.bfloat16(), k_BGKE.bfloat16(), v_BGKE.bfloat16(), half_mask, 0.0)
    whole = [] if shared == 4 or queries == 1 else [torch.bfloat16]
    assert dtypes == ([torch.float32] if way == "float32" and queries < 16 else whole)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.0)


@pytest.mark.parametrize("why", ["large scores", "many scores", "dropout", "gradients", "counted", None])
def test_whole_products_are_left_where_they_are_too_coarse_or_do_not_pay(
    monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    monkeypatch.setattr(kernel_full, "has_small_products", lambda dtype: False)
    monkeypatch.setattr(kernel_full, "_FEW_NUMBERS", 0)
    made = []
    products = kernel_full._products
    monkeypatch.setattr(kernel_full, "_products", lambda *given: made.append(1) or products(*given))
    if why == "many scores":
        monkeypatch.setattr(kernel_full, "_MOST_SCORES", 4 * 7 * 7 - 1)
    counting = FlopCounterMode(display=False) if why == "counted" else nullcontext()
    kernel = build_kernel(
        replace(_block(FullKernelConfig()), rope="1d" if why == "large scores" else "none"), num_tokens=7
    )
    with torch.inference_mode(why != "gradients"), counting:
        kernel(*_qkv(7, 7), _causal(7), 0.1 if why == "dropout" else 0.0)
    assert bool(made) == (why is None)


def test_rotary_blocks_read_few_keys_in_float32_and_never_round_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_full, "has_small_products", lambda dtype: False)
    kernel = FullAttention(large_scores=True)
    q_BHQE, k_BHKE, v_BHKE = (x.bfloat16() for x in _qkv(3, 3))
    expected = full_attention(q_BHQE.float() * 40, k_BHKE.float(), v_BHKE.float(), _causal(3).mask(), 0.0)
    with torch.inference_mode():
        found = kernel(q_BHQE * 40, k_BHKE, v_BHKE, _causal(3), 0.0)
    assert (found.float() - expected).abs().max() < 0.01


def test_a_query_that_sees_nothing_makes_no_nan_of_whole_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_full, "has_small_products", lambda dtype: False)
    q_BHQE, k_BHKE, v_BHKE = _qkv(20, 20)
    blind = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    with torch.inference_mode():
        assert full_attention(q_BHQE, k_BHKE, v_BHKE, blind, 0.0).isfinite().all()


def test_a_float_mask_is_added_to_the_scores() -> None:
    q_BHQE, k_BHKE, v_BHKE = _qkv(3, 5)
    bias_B11K = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(1))
    expected = (q_BHQE @ k_BHKE.mT / 8**0.5 + bias_B11K).softmax(dim=-1) @ v_BHKE
    torch.testing.assert_close(full_attention(q_BHQE, k_BHKE, v_BHKE, bias_B11K, 0.0), expected)


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_share_keys_read_as_if_each_had_its_own(queries: int, rows: int, masked: bool) -> None:
    q_BHQE, k_BGKE, v_BGKE = _qkv(queries, 9, heads=6, shared=2)
    mask_B1QK = None
    if masked:
        mask_B1QK = torch.rand(rows, 1, queries, 9, generator=torch.Generator().manual_seed(1)) < 0.6
        mask_B1QK[..., 0] = True
    k_BHKE, v_BHKE = k_BGKE[:, [0, 0, 0, 1, 1, 1]], v_BGKE[:, [0, 0, 0, 1, 1, 1]]
    expected = full_attention(q_BHQE, k_BHKE, v_BHKE, mask_B1QK, 0.0)
    torch.testing.assert_close(full_attention(q_BHQE, k_BGKE, v_BGKE, mask_B1QK, 0.0), expected)


def test_full_attention_drops_weights_where_it_is_told_to() -> None:
    q_BHQE, k_BHKE, v_BHKE = _qkv(7, 7)
    kept, dropped = (FullAttention()(q_BHQE, k_BHKE, v_BHKE, _causal(7), share) for share in (0.0, 0.5))
    assert not torch.equal(kept, dropped)


def test_the_config_names_the_kernel_and_its_sizes() -> None:
    full, window, linformer, performer = (build_kernel(_block(kernel), num_tokens=10) for kernel in KERNELS)
    assert isinstance(full, FullAttention)
    assert isinstance(window, SlidingWindow)
    assert window.window == Window(image=5, text=9)
    assert isinstance(linformer, Linformer)
    assert linformer.keys.shape == linformer.values.shape == (6, 10)
    assert isinstance(performer, Performer)
    assert performer.projection.shape == (20, 8)


def test_linformer_needs_a_length_and_no_other_kernel_does() -> None:
    for kernel in KERNELS:
        if isinstance(kernel, LinformerKernelConfig):
            with pytest.raises(AssertionError, match="length"):
                build_kernel(_block(kernel), num_tokens=None)
        else:
            build_kernel(_block(kernel), num_tokens=None)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_on_the_meta_device_kernels_have_shapes_and_draw_nothing(
    kernel: KernelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_kernel(_block(kernel), num_tokens=10).state_dict()
    before = torch.get_rng_state()
    monkeypatch.setattr(nn.init, "normal_", lambda *_, **__: pytest.fail("drawn, which imports torch's compiler"))
    with torch.device("meta"):
        empty = build_kernel(_block(kernel), num_tokens=10).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tensor.shape for name, tensor in empty.items()} == {name: t.shape for name, t in real.items()}
    assert all(tensor.is_meta for tensor in empty.values())
