"""Text positions: counted over the words, whatever padding stands between them."""

import pytest
import torch

from mmt_cli.model.position import learned_positions, text_positions


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
