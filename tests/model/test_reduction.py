"""Fewer image tokens: pixel shuffle as Idefics3 has it, averages, and merging that attention hardly notices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.image_config import ConnectorConfig
from mmt_cli.model.reduction import average, build_reduction, merge_tokens, pixel_shuffle, reduced_width


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _connector(reduction: str, factor: int) -> ConnectorConfig:
    block = BlockConfig(width=8, num_heads=2, mlp_width=8)
    return ConnectorConfig(reduction=reduction, reduction_factor=factor, block=block)


@pytest.mark.parametrize(("side", "factor"), [(4, 2), (6, 3), (8, 4), (3, 1)])
def test_pixel_shuffle_is_that_of_idefics3(side: int, factor: int) -> None:
    x_BND = _random(2, side * side, 5)
    expected = Idefics3Connector.pixel_shuffle(None, x_BND, factor)
    assert torch.equal(pixel_shuffle(x_BND, (side, side), factor), expected)


def test_pixel_shuffle_lays_the_cells_of_a_square_row_by_row() -> None:
    cells_BND = torch.arange(24).reshape(1, 24, 1)
    expected = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]
    assert pixel_shuffle(cells_BND, (4, 6), 2)[0].tolist() == expected


def test_averages_at_the_border_are_of_what_is_there() -> None:
    cells_BND = torch.arange(15.0).reshape(1, 15, 1)
    means = [(0 + 1 + 5 + 6) / 4, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2, (10 + 11) / 2, (12 + 13) / 2, 14]
    assert average(cells_BND, (3, 5), 2).flatten().tolist() == means
    assert average(cells_BND, (3, 5), 7).flatten().tolist() == [7]


@pytest.mark.parametrize("reduction", ["none", "pixel_shuffle", "average"])
@pytest.mark.parametrize(("grid", "factor"), [((4, 8), 2), ((4, 8), 4)])
def test_the_config_chooses_and_foretells_shape(reduction: str, grid: tuple[int, int], factor: int) -> None:
    config = _connector(reduction, factor)
    x_BND = _random(2, 32, 3)
    reduced = build_reduction(config)(x_BND, grid)
    rows, columns = config.reduced(grid)
    assert reduced.shape == (2, rows * columns, reduced_width(config, 3))
    expected = {
        "none": x_BND,
        "pixel_shuffle": pixel_shuffle(x_BND, grid, factor),
        "average": average(x_BND, grid, factor),
    }
    assert torch.equal(reduced, expected[reduction])


def test_tokens_in_no_grid_pass_unreduced() -> None:
    x_BND = _random(2, 7, 3)
    assert build_reduction(_connector("none", 2))(x_BND, None) is x_BND


def _merged_by_definition(x_ND: Tensor, size_N: Tensor, merged: int, extra: int) -> tuple[Tensor, Tensor]:
    """One image, in loops."""
    sources, destinations = range(extra, len(x_ND), 2), range(extra + 1, len(x_ND), 2)
    pairs = []
    for source in sources:
        likeness = [float(functional.cosine_similarity(x_ND[source], x_ND[place], dim=0)) for place in destinations]
        pairs.append((max(likeness), source, destinations[likeness.index(max(likeness))]))
    joining = sorted(pairs, reverse=True)[:merged]
    groups = {place: [place] for place in range(len(x_ND))}
    for _, source, destination in joining:
        groups[destination] += groups.pop(source)
    order = sorted(groups, key=lambda place: (place >= extra, place in destinations, place))
    sizes = torch.stack([size_N[groups[place]].sum() for place in order])
    means = [(x_ND[groups[place]] * size_N[groups[place], None]).sum(0) for place in order]
    return torch.stack(means) / sizes[:, None], sizes


@given(count=st.integers(2, 15), share=st.floats(0, 1), extra=st.integers(0, 1), seed=st.integers(0, 99))
def test_merging_follows_its_definition_and_keeps_sizes_and_mean(
    count: int, share: float, extra: int, seed: int
) -> None:
    merged = round(share * (count // 2))
    x_BND = _random(2, extra + count, 6, seed=seed)
    size_BN = torch.randint(1, 9, x_BND.shape[:2], generator=torch.Generator().manual_seed(seed)).float()
    fewer_BND, fewer_BN = merge_tokens(x_BND, size_BN, merged, extra)
    assert fewer_BND.shape == (2, extra + count - merged, 6)
    if merged:
        for row in range(2):
            expected_ND, expected_N = _merged_by_definition(x_BND[row], size_BN[row], merged, extra)
            torch.testing.assert_close(fewer_BND[row], expected_ND, rtol=1e-5, atol=1e-5)
            assert torch.equal(fewer_BN[row], expected_N)
    assert torch.equal(fewer_BN.sum(1), size_BN.sum(1))
    sums = [(tokens * sizes[..., None]).sum(1) for tokens, sizes in ((x_BND, size_BN), (fewer_BND, fewer_BN))]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-4)


def _attended(query_BLD: Tensor, x_BND: Tensor, size_BN: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query_BLD, x_BND, x_BND.sin(), attn_mask=size_BN.log()[:, None])


@pytest.mark.parametrize("extra", [0, 1])
def test_attention_with_log_sizes_does_not_notice_that_equal_tokens_merged(extra: int) -> None:
    """Runs of 8, 4, 2 and 2 equal tokens; two rounds leave tokens of different sizes."""
    runs = torch.tensor([8, 4, 2, 2])
    x_BND = torch.cat([_random(2, extra, 6), _random(2, 4, 6, seed=1).repeat_interleave(runs, dim=1)], dim=1)
    size_BN = torch.ones(2, extra + 16)
    query_BLD = _random(2, 5, 6, seed=2)
    expected = _attended(query_BLD, x_BND, size_BN)
    for merged in (8, 3):
        x_BND, size_BN = merge_tokens(x_BND, size_BN, merged, extra)
    assert x_BND.shape == (2, extra + 5, 6)
    torch.testing.assert_close(_attended(query_BLD, x_BND, size_BN), expected, rtol=0, atol=1e-6)
    assert (_attended(query_BLD, x_BND, torch.ones_like(size_BN)) - expected).abs().max() > 0.05


def test_rows_of_a_batch_merge_by_themselves() -> None:
    x_BND, size_BN = _random(3, 9, 6), torch.ones(3, 9)
    together = merge_tokens(x_BND, size_BN, 3, 1)
    for row in range(3):
        alone = merge_tokens(x_BND[row : row + 1], size_BN[row : row + 1], 3, 1)
        for tokens, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(tokens[0], expected[row], rtol=0, atol=1e-6)


def test_merging_none_changes_nothing() -> None:
    x_BND, size_BN = _random(2, 5, 4), torch.ones(2, 5)
    fewer_BND, fewer_BN = merge_tokens(x_BND, size_BN, 0, 1)
    assert fewer_BND is x_BND
    assert fewer_BN is size_BN


def test_more_than_half_cannot_merge() -> None:
    with pytest.raises(AssertionError):
        merge_tokens(_random(2, 5, 4), torch.ones(2, 5), 3, 0)
    with pytest.raises(AssertionError):
        merge_tokens(_random(2, 6, 4), torch.ones(2, 6), 3, 1)


def test_every_token_gets_its_share_of_the_gradient() -> None:
    x_BND = _random(2, 9, 4).requires_grad_()
    fewer_BND, fewer_BN = merge_tokens(x_BND, torch.ones(2, 9), 4, 1)
    (fewer_BND * fewer_BN[..., None]).sum().backward()
    torch.testing.assert_close(x_BND.grad, torch.ones_like(x_BND))


def test_half_precision_is_merged_in_float32() -> None:
    """In bfloat16 256 + 1 is 256: the small token would be lost, and its size with it."""
    x_BND = torch.tensor([[[1.0, 0.0], [1.0, 0.25]]]).bfloat16()
    fewer_BND, fewer_BN = merge_tokens(x_BND, torch.tensor([[1.0, 256.0]]), 1, 0)
    assert fewer_BND.dtype == torch.bfloat16
    assert fewer_BN.tolist() == [[257.0]]


def test_autocast_does_not_blur_which_tokens_are_alike() -> None:
    x_BND = 1 + 0.02 * _random(2, 40, 16)
    expected = merge_tokens(x_BND, torch.ones(2, 40), 10, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = merge_tokens(x_BND, torch.ones(2, 40), 10, 0)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
