"""Who sees whom, as a table. Q queries, K keys."""

import pytest
import torch
from torch import Tensor

from mmt_cli.model.mask import visibility_mask


def _table(mask_B1QK: Tensor | None) -> list[str]:
    assert mask_B1QK is not None
    assert mask_B1QK.dtype == torch.bool
    assert mask_B1QK.shape[:2] == (1, 1)
    return ["".join(".x"[int(seen)] for seen in row) for row in mask_B1QK[0, 0]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([0, 1, 2], ["x..", "xx.", "xxx"]),
        ([0, 0, 1, 2], ["xx..", "xx..", "xxx.", "xxxx"]),
        ([1, 2, 0, 0], ["x.xx", "xxxx", "..xx", "..xx"]),
        ([0, 0, 0, 1], ["xxx.", "xxx.", "xxx.", "xxxx"]),
    ],
    ids=["causal", "image-first", "text-first", "prompt-seen-whole"],
)
def test_a_token_sees_what_is_not_later_than_itself(steps: list[int], expected: list[str]) -> None:
    step_BL = torch.tensor([steps])
    assert _table(visibility_mask(step_BL, step_BL, None)) == expected


def test_padding_keys_are_hidden_from_all_and_padding_queries_see_the_rest() -> None:
    step_BL = torch.tensor([[0, 1, 1, 1]])
    valid_BL = torch.tensor([[True, True, False, False]])
    assert _table(visibility_mask(step_BL, step_BL, valid_BL)) == ["x...", "xx..", "xx..", "xx.."]


def test_new_queries_look_at_old_keys() -> None:
    step_BQ, step_BK = torch.tensor([[3, 4]]), torch.tensor([[0, 0, 1, 2, 3, 4]])
    assert _table(visibility_mask(step_BQ, step_BK, None)) == ["xxxxx.", "xxxxxx"]


def test_there_is_no_mask_when_nothing_is_hidden() -> None:
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert visibility_mask(torch.zeros(1, 3), torch.zeros(1, 3), None) is None
    assert visibility_mask(torch.zeros(1, 3), torch.zeros(1, 3), everything) is None
    assert visibility_mask(torch.tensor([[7]]), torch.arange(8)[None], None) is None


def test_rows_have_masks_of_their_own() -> None:
    step_BL = torch.tensor([[0, 1], [0, 0]])
    mask_B1QK = visibility_mask(step_BL, step_BL, None)
    assert mask_B1QK is not None
    assert mask_B1QK[:, 0].tolist() == [[[True, False], [True, True]], [[True, True], [True, True]]]
