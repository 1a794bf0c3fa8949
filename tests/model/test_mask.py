"""Who sees whom, as a table. Q queries, K keys."""

import pytest
import torch
from torch import Tensor

from mmt_cli.model.mask import NO_PLACE, Segment, Tokens, Visibility, Window, image_tokens, join


def _tokens(steps: list[list[int]], valid: list[list[bool]] | None = None) -> Tokens:
    step_BL = torch.tensor(steps)
    return Tokens(
        step_BL=step_BL,
        place_BL=torch.arange(step_BL.shape[1]).expand_as(step_BL),
        image_BL=torch.zeros_like(step_BL, dtype=torch.bool),
        valid_BL=None if valid is None else torch.tensor(valid),
    )


def _of(tokens: Tokens, keys: Tokens | None = None, start: int = 0) -> Visibility:
    return Visibility(queries=tokens, keys=tokens if keys is None else keys, start=start)


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
    assert _table(_of(_tokens([steps])).mask()) == expected


def test_padding_keys_are_hidden_from_all_and_padding_queries_see_the_rest() -> None:
    tokens = _tokens([[0, 1, 1, 1]], [[True, True, False, False]])
    assert _table(_of(tokens).mask()) == ["x...", "xx..", "xx..", "xx.."]


def test_new_queries_look_at_old_keys() -> None:
    visibility = _of(_tokens([[3, 4]]), _tokens([[0, 0, 1, 2, 3, 4]]), start=4)
    assert _table(visibility.mask()) == ["xxxxx.", "xxxxxx"]


def test_there_is_no_mask_when_the_segments_hide_nothing() -> None:
    device = torch.device("cpu")
    assert Visibility.of_image(5, (2, 2), device).mask() is None
    one, keys = _tokens([[7]]), _tokens([list(range(8))])
    segment = (Segment(start=0, end=1, causal=True),)
    assert Visibility(queries=one, keys=keys, segments=segment, start=7).mask() is None
    padded = _tokens([list(range(8))], [[True] * 7 + [False]])
    assert _table(Visibility(queries=one, keys=padded, segments=segment, start=7).mask()) == ["xxxxxxx."]


def test_rows_have_masks_of_their_own() -> None:
    mask_B1QK = _of(_tokens([[0, 1], [0, 0]])).mask()
    assert mask_B1QK is not None
    assert mask_B1QK[:, 0].tolist() == [[[True, False], [True, True]], [[True, True], [True, True]]]


def test_a_key_bias_joins_the_mask() -> None:
    bias_BK = torch.tensor([[0.5, 0.0, 2.0]])
    tokens = _tokens([[0, 1, 2]])
    mask_B1QK = Visibility(queries=tokens, keys=tokens, key_bias_BK=bias_BK).mask()
    assert mask_B1QK is not None
    hidden = -torch.inf
    assert mask_B1QK[0, 0].tolist() == [[0.5, hidden, hidden], [0.5, 0.0, hidden], [0.5, 0.0, 2.0]]
    everything = Visibility.of_image(3, None, torch.device("cpu"), bias_BK).mask()
    assert everything is not None
    assert everything.flatten().tolist() == [0.5, 0.0, 2.0]


def test_a_window_cuts_within_a_modality_and_never_between() -> None:
    """A class token, a picture of 2 x 3 cells, then four words."""
    image = image_tokens(7, (2, 3), torch.device("cpu"))
    assert image.place_BL.tolist() == [[NO_PLACE, 0, 1, 2, 3, 4, 5]]
    words = _tokens([[1, 2, 3, 4]])
    tokens = join([image, words])
    visibility = Visibility(queries=tokens, keys=tokens, grid=(2, 3))
    assert _table(visibility.mask(Window(image=3, text=2))) == [
        "xxxxxxx....",
        "xxx.xx.....",
        "xxxxxxx....",
        "x.xx.xx....",
        "xxx.xx.....",
        "xxxxxxx....",
        "x.xx.xx....",
        "xxxxxxxx...",
        "xxxxxxxxx..",
        "xxxxxxx.xx.",
        "xxxxxxx..xx",
    ]


def test_a_window_behind_a_cache_still_sees_the_picture() -> None:
    image = image_tokens(2, (1, 2), torch.device("cpu"))
    keys = join([image, _tokens([[1, 2, 3, 4]])])
    query = Tokens(
        step_BL=torch.tensor([[4]]), place_BL=torch.tensor([[3]]), image_BL=torch.tensor([[False]]), valid_BL=None
    )
    visibility = Visibility(queries=query, keys=keys, segments=(Segment(start=0, end=1, causal=True),), start=5)
    assert _table(visibility.mask(Window(image=1, text=2))) == ["xx..xx"]


def test_joined_tokens_are_valid_but_for_padding() -> None:
    joined = join(
        [image_tokens(2, (1, 2), torch.device("cpu")), _tokens([[1, 2], [1, 1]], [[True, True], [True, False]])]
    )
    assert joined.step_BL.tolist() == [[0, 0, 1, 2], [0, 0, 1, 1]]
    assert joined.valid_BL is not None
    assert joined.valid_BL.tolist() == [[True] * 4, [True, True, True, False]]
