"""Dropout: how much is dropped, what the mean is, that random numbers are torch's, and when nothing happens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmt_cli.model.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.97])
def test_elements_are_dropped_by_chance_and_the_others_make_up_for_them(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1000, 1001, dtype=dtype))
    dropped = (y == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-16
    kept = y[y != 0].float()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2, atol=0.0)


def test_neighbours_and_calls_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.5)
    rows = torch.stack([dropout(torch.ones(40_000)).ne(0).double() for _ in range(2)])
    by_lane = rows.view(2, -1, 4)
    for pair in ((rows[0], rows[1]), *((by_lane[0, :, 0], by_lane[0, :, lane]) for lane in (1, 2, 3))):
        assert abs(torch.corrcoef(torch.stack(pair))[0, 1].item()) < 0.05


def test_gradients_pass_where_elements_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())


@settings(max_examples=30)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), p=st.floats(0, 1))
def test_any_shape_and_probability_is_repeated_from_the_same_seed(shape: list[int], p: float) -> None:
    x = torch.ones(shape)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(Dropout(p)(x))
    assert found[0].shape == x.shape
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_nothing_is_dropped_outside_training() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.9).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
