"""Linear maps in 8 bits: how far off they may be, and that no row depends on its neighbours."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmt_cli.model import int8
from mmt_cli.model.int8 import Int8Embedding, Int8Linear, count_bytes, quantise, quantised
from mmt_cli.model.layers import ACTIVATIONS


@pytest.fixture(params=["kernels", "plain"])
def product(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(int8, "can_multiply", lambda: False)
    elif not int8.can_multiply():
        pytest.skip("no 8-bit kernels on this machine")


def made(activation=None, *, bias=True):
    torch.manual_seed(0)
    plain = nn.Linear(320, 96, bias=bias).requires_grad_(False)
    return plain, Int8Linear(plain, activation)


def test_values_are_off_by_half_a_step_at_most():
    x = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    values, scale = quantised(x)
    assert values.dtype == torch.int8 and values.abs().amax() <= 127
    assert ((values * scale - x).abs() <= scale * 0.5001).all()
    assert torch.equal(values.abs().amax(dim=1), torch.full((50,), 127, dtype=torch.int8))


def test_a_row_of_zeros_stays_one():
    values, scale = quantised(torch.zeros(2, 5))
    assert not values.any() and scale.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 320), (3, 7, 320), (300, 320)])
def test_products_are_exact_but_for_the_rounding_of_weights_and_inputs(product, bias, shape):
    plain, ours = made(bias=bias)
    x = torch.randn(shape)
    values, scale = quantised(x)
    weight, weight_scale = quantised(plain.weight)
    wanted = functional.linear((values.double() * scale), weight.double() * weight_scale, None)
    wanted = wanted if plain.bias is None else wanted + plain.bias
    with torch.inference_mode():
        found = ours(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    exact = functional.linear(x, plain.weight, plain.bias)
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_the_activation_comes_behind_the_map(product, name):
    activation = ACTIVATIONS[name]()
    _, ours = made(activation)
    _, without = made()
    x = torch.randn(200, 320)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), activation(without(x)), rtol=1e-5, atol=1e-6)


def test_no_row_depends_on_its_neighbours(product):
    _, ours = made()
    x = torch.randn(300, 320)
    x[7] *= 1_000
    with torch.inference_mode():
        alone = torch.cat([ours(row[None]) for row in x])
        assert torch.equal(ours(x), alone)


def test_no_rows_give_no_rows(product):
    _, ours = made()
    assert ours(torch.randn(0, 320)).shape == (0, 96)


def test_bfloat16_stays_bfloat16(product):
    plain = nn.Linear(320, 96).bfloat16().requires_grad_(False)
    x = torch.randn(4, 320).bfloat16()
    found = Int8Linear(plain, None)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain(x).float(), rtol=0.1, atol=0.05)


def test_a_table_is_looked_up_with_the_scale_of_each_row():
    plain = nn.Embedding(30, 16)
    ids = torch.tensor([[3, 4], [29, 0]])
    found, wanted = Int8Embedding(plain)(ids), plain(ids)
    assert found.dtype == torch.float32
    assert ((found - wanted).abs() <= wanted.abs().amax(dim=-1, keepdim=True) / 253).all()


def test_all_of_a_model_that_is_large_is_turned_into_8_bits():
    parts = nn.ModuleDict(
        {
            "up": nn.Linear(256, 256),
            "gate": nn.Linear(256, 1),
            "head": nn.Linear(256, 300, bias=False),
            "tokens": nn.Embedding(300, 256),
        }
    )
    parts["head"].weight = parts["tokens"].weight
    quantise(parts)
    kinds = {name: type(part) for name, part in parts.items()}
    assert kinds == {"up": Int8Linear, "gate": nn.Linear, "head": Int8Linear, "tokens": Int8Embedding}


def test_a_tied_head_reads_the_numbers_of_the_table():
    parts = nn.ModuleDict({"tokens": nn.Embedding(300, 256), "head": nn.Linear(256, 300, bias=False)})
    parts["head"].weight = parts["tokens"].weight
    parts["own"] = nn.Linear(256, 300, bias=False)
    parts.requires_grad_(False)
    alone = Int8Linear(parts["head"], None)
    quantise(parts)
    assert parts["head"].product.values is parts["tokens"].values_VD
    assert count_bytes(parts) == 2 * 300 * 256  # once for both
    x = torch.randn(5, 256)
    with torch.inference_mode():
        torch.testing.assert_close(parts["head"](x), alone(x))


MULTIPLY = """
import torch
from mmt_cli.model.int8 import Int8Linear
linear = Int8Linear(torch.nn.Linear(320, 96).requires_grad_(False), None)
with torch.inference_mode():
    for rows in (1, 8, 200):
        linear(torch.randn(rows, 320))
"""


@pytest.mark.skipif(not int8.can_multiply(), reason="no 8-bit kernels on this machine")
def test_products_are_made_by_kernels_not_by_plain_loops():
    told = os.environ | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", MULTIPLY], env=told, capture_output=True, text=True, check=True)
    products = [line for line in done.stdout.splitlines() if ",exec,cpu,matmul," in line]
    assert len(products) == 4
    assert not [line for line in products if ",ref" in line]
