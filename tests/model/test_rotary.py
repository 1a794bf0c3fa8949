"""Rotary positions: as transformers' Llama and Qwen2-VL turn their heads, and what the idea promises."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig

from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.rotary import Rotation, build_rotary, image_places, next_place, rotate, text_places

AXES = {"1d": 1, "2d": 2, "multimodal": 3}
CPU = torch.device("cpu")


def _block(rope: str, head: int = 64, theta: float = 10_000.0) -> BlockConfig:
    return BlockConfig(width=2 * head, num_heads=2, mlp_width=8, rope=rope, rope_theta=theta)


def _rotation(rope: str, place_BLA: Tensor, head: int = 64, theta: float = 10_000.0) -> Rotation:
    rotary = build_rotary(_block(rope, head, theta))
    assert rotary is not None
    return rotary(place_BLA)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _places(axes: int, *, rows: int = 2, length: int = 9, high: int = 50) -> Tensor:
    return torch.randint(high, (rows, length, axes), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("head", "theta"), [(64, 10_000.0), (16, 500_000.0)])
def test_1d_turns_as_llama_does(head: int, theta: float) -> None:
    config = modeling_llama.LlamaConfig(
        hidden_size=2 * head, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    place_BL = _places(1, high=4_000)[..., 0]
    x_BHLE = _random(2, 2, 9, head)
    cos_BLE, sin_BLE = modeling_llama.LlamaRotaryEmbedding(config)(x_BHLE, place_BL)
    expected, _ = modeling_llama.apply_rotary_pos_emb(x_BHLE, x_BHLE, cos_BLE, sin_BLE)
    found = rotate(x_BHLE, _rotation("1d", place_BL[..., None], head, theta))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", [64, 80])
def test_2d_turns_as_the_vision_tower_of_qwen2_vl_does(head: int) -> None:
    config = Qwen2VLVisionConfig(embed_dim=2 * head, num_heads=2)
    place_NA = image_places(2, (5, 7), 0, CPU)
    x_LHE = _random(35, 2, head)
    cos_LE, sin_LE = modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)(x_LHE, place_NA)
    expected_LHE, _ = modeling_qwen2_vl.apply_rotary_pos_emb_vision(x_LHE, x_LHE, cos_LE, sin_LE)
    found = rotate(x_LHE.transpose(0, 1)[None], _rotation("2d", place_NA[None], head))
    torch.testing.assert_close(found[0].transpose(0, 1), expected_LHE, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("head", "sections"), [(64, [8, 12, 12]), (128, [16, 24, 24])])
def test_multimodal_turns_as_the_decoder_of_qwen2_vl_does(head: int, sections: list[int]) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2VLTextConfig(hidden_size=2 * head, num_attention_heads=2, rope_parameters=rope)
    place_BLA, x_BHLE = _places(3), _random(2, 2, 9, head)
    cos_BLE, sin_BLE = modeling_qwen2_vl.Qwen2VLRotaryEmbedding(config)(x_BHLE, place_BLA.permute(2, 0, 1))
    expected, _ = modeling_qwen2_vl.apply_rotary_pos_emb(x_BHLE, x_BHLE, cos_BLE, sin_BLE)
    found = rotate(x_BHLE, _rotation("multimodal", place_BLA, head, 1e6))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", [8, 24, 40, 64])
def test_text_turns_on_three_axes_as_on_one(head: int) -> None:
    position_BT = torch.arange(9)[None]
    alone = _rotation("1d", text_places(1, position_BT, 3), head)
    joint = _rotation("multimodal", text_places(3, position_BT, 3), head)
    assert torch.equal(joint.cos_B1LE, alone.cos_B1LE)
    assert torch.equal(joint.sin_B1LE, alone.sin_B1LE)


def test_without_rotary_positions_there_is_no_rotation() -> None:
    assert build_rotary(_block("none")) is None


def _scores(rope: str, place_BLA: Tensor) -> Tensor:
    rotation = _rotation(rope, place_BLA)
    q_BHLE, k_BHLE = (rotate(_random(2, 2, 9, 64, seed=seed), rotation) for seed in (1, 2))
    return q_BHLE @ k_BHLE.transpose(2, 3)


@pytest.mark.parametrize("rope", AXES)
def test_scores_tell_differences_of_places_on_each_axis_and_nothing_else(rope: str) -> None:
    place_BLA = _places(AXES[rope])
    shift_A = torch.tensor([7, 30, 11][: AXES[rope]])
    torch.testing.assert_close(_scores(rope, place_BLA), _scores(rope, place_BLA + shift_A), rtol=0, atol=2e-4)
    for axis in range(AXES[rope]):
        stretched_BLA = place_BLA.clone()
        stretched_BLA[..., axis] *= 2
        assert (_scores(rope, place_BLA) - _scores(rope, stretched_BLA)).abs().max() > 0.1


@pytest.mark.parametrize("rope", AXES)
def test_turning_keeps_lengths(rope: str) -> None:
    x_BHLE = _random(2, 3, 9, 64)
    turned = rotate(x_BHLE, _rotation(rope, _places(AXES[rope])))
    assert (turned - x_BHLE).abs().max() > 1
    torch.testing.assert_close(turned.norm(dim=-1), x_BHLE.norm(dim=-1))


@pytest.mark.parametrize("rope", AXES)
def test_one_row_of_places_serves_all_and_fractions_lie_between(rope: str) -> None:
    place_BLA, x_BHLE = _places(AXES[rope], rows=1), _random(2, 3, 9, 64)
    everywhere = rotate(x_BHLE, _rotation(rope, place_BLA.expand(2, -1, -1)))
    torch.testing.assert_close(rotate(x_BHLE, _rotation(rope, place_BLA)), everywhere, rtol=0, atol=0)
    half = _rotation(rope, place_BLA / 2)
    torch.testing.assert_close(rotate(rotate(x_BHLE, half), half), everywhere, rtol=0, atol=1e-5)


def test_half_precision_is_turned_in_float32() -> None:
    rotation, x_BHLE = _rotation("1d", _places(1)), _random(2, 2, 9, 64).bfloat16()
    turned = rotate(x_BHLE, rotation)
    assert turned.dtype == torch.bfloat16
    assert rotation.cos_B1LE.dtype == torch.float32
    assert torch.equal(turned, rotate(x_BHLE.float(), rotation).bfloat16())


def test_places_and_rotations_stay_on_the_device_of_the_model() -> None:
    place_NA = image_places(3, (2, 2), 1, torch.device("meta"))
    assert _rotation("multimodal", place_NA[None]).cos_B1LE.device.type == "meta"


@pytest.mark.parametrize(
    ("axes", "extra", "expected"),
    [
        (1, 0, [[0], [1], [2], [3], [4], [5]]),
        (1, 1, [[0], [1], [2], [3], [4], [5], [6]]),
        (2, 0, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]),
        (2, 1, [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]),
        (3, 0, [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]),
        (3, 1, [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3]]),
    ],
)
def test_cells_stand_row_by_row_behind_the_class_token(axes: int, extra: int, expected: list[list[int]]) -> None:
    assert image_places(axes, (2, 3), extra, CPU).tolist() == expected


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("grid", [(2, 3), (5, 2), (1, 1)])
def test_text_goes_on_one_behind_the_largest_place_of_the_image(axes: int, extra: int, grid: tuple[int, int]) -> None:
    assert next_place(axes, grid, extra) == int(image_places(axes, grid, extra, CPU).max()) + 1


def test_text_has_the_same_place_on_all_axes() -> None:
    position_BT = torch.tensor([[0, 1], [0, 0]])
    assert text_places(3, position_BT, 5).tolist() == [[[5, 5, 5], [6, 6, 6]], [[5, 5, 5], [5, 5, 5]]]
