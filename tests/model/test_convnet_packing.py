"""The convolutional tower in oneDNN's layout: the same features, and never those of weights that have changed."""

import copy

import pytest
import torch

from mmt_cli.model.convnet import ConvNorm, EfficientNetLite
from mmt_cli.model.convnet_packing import PackedConvNorm, PackedResidual, pack_convolutions
from mmt_cli.model.processor import can_pack

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN on this machine")


@pytest.fixture
def towers():
    """The same tower with plain and with packed convolutions, its norms far from doing nothing."""
    torch.manual_seed(0)
    plain = EfficientNetLite("efficientnet_lite2").eval().requires_grad_(False)
    for norm in (part.norm for part in plain.modules() if isinstance(part, ConvNorm)):
        for numbers in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            numbers.uniform_(0.5, 2)
    packed = copy.deepcopy(plain)
    pack_convolutions(packed)
    return plain, packed


def packed_ones(tower):
    return [part for part in tower.modules() if isinstance(part, PackedConvNorm) and part._packed is not None]


@pytest.mark.parametrize("height,width", [(64, 64), (65, 95), (33, 64)])  # all sorts of SAME padding
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_packed_convolutions_give_the_plain_ones_features(towers, height, width, layout):
    plain, packed = towers
    for batch in (1, 3):  # packed for one batch, used for another
        pixels = torch.randn(batch, 3, height, width).to(memory_format=layout)
        with torch.inference_mode():
            torch.testing.assert_close(packed(pixels), plain(pixels), rtol=1e-4, atol=1e-4)
    assert len(packed_ones(packed)) == sum(isinstance(part, ConvNorm) for part in plain.modules())


def test_every_block_adds_its_input_in_the_kernel(towers):
    _, packed = towers
    assert all(type(block) is PackedResidual for block in packed.blocks)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no bfloat16 kernels")
def test_in_bfloat16_they_are_no_further_from_float32_than_the_plain_ones(towers):
    plain, packed = towers
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        exact = plain(pixels)
        plain.bfloat16(), packed.bfloat16()
        off = [float((tower(pixels.bfloat16()).float() - exact).norm() / exact.norm()) for tower in (plain, packed)]
    assert off[1] < 1.2 * off[0]


def scale(tower):
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.9)


@pytest.mark.parametrize("change", ["loading", "dtype", "training"])
def test_weights_that_change_are_packed_anew(towers, change):
    plain, packed = towers
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = packed(pixels)
    scale(plain)
    if change == "loading":
        packed.load_state_dict(plain.state_dict())
    else:
        packed(pixels) if change == "training" else packed.double().float()
        scale(packed)
    with torch.inference_mode():
        found = packed(pixels)
        assert not torch.equal(found, before)
        torch.testing.assert_close(found, plain(pixels), rtol=1e-4, atol=1e-4)


def test_its_state_is_the_plain_one_bit_for_bit(towers):
    plain, packed = towers
    with torch.inference_mode():
        packed(torch.randn(1, 3, 64, 64))
    state = packed.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(x, state[name]) for name, x in plain.state_dict().items())


def test_training_statistics_and_gradients_go_the_plain_way(towers):
    plain, packed = towers
    plain.train(), packed.train()
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(packed(pixels), plain(pixels))
    assert not packed_ones(packed)


def test_a_tower_that_has_been_used_can_be_copied(towers):
    _, packed = towers
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(packed)(pixels), packed(pixels))
        assert torch.equal(copy.deepcopy(packed)(pixels), packed(pixels))
