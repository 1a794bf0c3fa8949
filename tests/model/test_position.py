"""Text positions are counted over the words; image positions lie on a grid and follow it to other sizes."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Config, Dinov2Embeddings

from mmt_cli.model.position import build_positions, learned_positions, table_rows, text_positions

WIDTH = 8


def _tokens(count: int = 1, *, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(2, count, width, dtype=dtype)


def _table(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("valid", "expected"),
    [("xxxx", [0, 1, 2, 3]), ("xx..", [0, 1, 1, 1]), ("..xx", [0, 0, 0, 1]), ("x.x.", [0, 0, 1, 1]), ("....", [0] * 4)],
)
def test_positions_count_the_valid_tokens(valid: str, expected: list[int]) -> None:
    valid_BT = torch.tensor([[mark == "x" for mark in valid]])
    assert text_positions(torch.zeros(1, 4), valid_BT).tolist() == [expected]


def test_without_padding_one_row_serves_all() -> None:
    assert text_positions(torch.zeros(5, 3), None).tolist() == [[0, 1, 2]]


def test_a_table_has_a_row_for_each_position_and_can_be_trained() -> None:
    table = learned_positions(7, 4)
    assert table.shape == (7, 4)
    assert table.requires_grad


@pytest.mark.parametrize("extra", [0, 1])
def test_tables_have_a_row_for_each_vector_that_is_learned(extra: int) -> None:
    rows = {kind: table_rows(kind, (3, 5), extra) for kind in ("none", "learned", "learned_2d", "sincos_2d")}
    assert rows == {"none": 0, "learned": 15 + extra, "learned_2d": 8 + extra, "sincos_2d": 0}


@pytest.mark.parametrize("kind", ["learned", "learned_2d", "sincos_2d"])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("grid", [(3, 5), (4, 2), (1, 1)])
def test_each_token_of_any_grid_gets_a_position(kind: str, extra: int, grid: tuple[int, int]) -> None:
    positions = build_positions(kind, WIDTH, (3, 5), extra)
    position_ND = positions(_table(table_rows(kind, (3, 5), extra)), grid, _tokens())
    assert position_ND.shape == (extra + math.prod(grid), WIDTH)


def test_no_positions_are_none() -> None:
    assert build_positions("none", WIDTH, (3, 5), 0)(None, (3, 5), _tokens()) is None


@pytest.mark.parametrize(("home", "grid"), [((3, 5), (3, 5)), (None, None), (None, (4, 4))])
def test_on_its_own_grid_or_on_none_a_learned_table_is_taken_as_it_is(
    home: tuple[int, int] | None, grid: tuple[int, int] | None
) -> None:
    table_ND = _table(16)
    assert build_positions("learned", WIDTH, home, 1)(table_ND, grid, _tokens()) is table_ND


def test_a_cell_has_the_vector_of_its_row_and_that_of_its_column() -> None:
    table_ND = _table(1 + 2 + 3)
    position_ND = build_positions("learned_2d", WIDTH, (2, 3), 1)(table_ND, (2, 3), _tokens())
    assert torch.equal(position_ND[0], table_ND[0])
    for row in range(2):
        for column in range(3):
            assert torch.equal(position_ND[1 + row * 3 + column], table_ND[1 + row] + table_ND[3 + column])


@pytest.mark.parametrize("grid", [(7, 3), (2, 9), (5, 4)])
def test_another_grid_resamples_a_learned_table_as_dinov2_does(grid: tuple[int, int]) -> None:
    theirs = Dinov2Embeddings(Dinov2Config(hidden_size=WIDTH, image_size=56, patch_size=14)).requires_grad_(False)
    theirs.position_embeddings.copy_(_table(17)[None])
    expected_ND = theirs.interpolate_pos_encoding(_tokens(1 + math.prod(grid)), 14 * grid[0], 14 * grid[1])[0]
    position_ND = build_positions("learned", WIDTH, (4, 4), 1)(_table(17), grid, _tokens())
    torch.testing.assert_close(position_ND, expected_ND, rtol=0, atol=1e-6)
    assert torch.equal(position_ND[0], _table(17)[0])


@pytest.mark.parametrize("grid", [(6, 5), (3, 8), (2, 2), (1, 7)])
def test_axes_resampled_alone_agree_with_the_grid_of_their_sums(grid: tuple[int, int]) -> None:
    table_ND = _table(1 + 3 + 5)
    axes, cells = (build_positions(kind, WIDTH, (3, 5), 1) for kind in ("learned_2d", "learned"))
    sums_ND = axes(table_ND, (3, 5), _tokens())
    torch.testing.assert_close(axes(table_ND, grid, _tokens()), cells(sums_ND, grid, _tokens()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["learned", "learned_2d"])
def test_tables_are_resampled_in_float32_and_stay_trainable(kind: str) -> None:
    positions = build_positions(kind, WIDTH, (3, 5), 1)
    table_ND = _table(table_rows(kind, (3, 5), 1)).bfloat16().requires_grad_()
    position_ND = positions(table_ND, (3, 8), _tokens())
    assert position_ND.dtype == torch.bfloat16
    if kind == "learned":
        assert torch.equal(position_ND, positions(table_ND.float(), (3, 8), _tokens()).bfloat16())
    position_ND.sum().backward()
    assert (table_ND.grad.abs().sum(1) > 0).all()


def test_sines_of_the_row_and_of_the_column_fill_half_the_width_each() -> None:
    position_ND = build_positions("sincos_2d", 12, (9, 9), 1)(None, (3, 4), _tokens(width=12))
    assert position_ND.shape == (13, 12)
    assert not position_ND[0].any()
    for place, found in enumerate(position_ND[1:].tolist()):
        row, column = divmod(place, 4)
        expected = [
            wave(axis / 10_000 ** (step / 3))
            for axis in (row, column)
            for wave in (math.sin, math.cos)
            for step in range(3)
        ]
        assert found == pytest.approx(expected, abs=1e-6)


def test_computed_positions_have_the_dtype_and_the_device_of_the_tokens() -> None:
    positions = build_positions("sincos_2d", WIDTH, (2, 2), 0)
    assert positions(None, (2, 2), _tokens(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert positions(None, (2, 2), _tokens().to("meta")).device.type == "meta"
