"""The sliding window against the mask that defines it. B batch, H heads, L sequence, N image tokens, E head width."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmt_cli.model import kernel_window
from mmt_cli.model.kernels import SlidingWindow, full_attention
from mmt_cli.model.mask import Segment, Tokens, Visibility, Window, image_tokens, join

CPU = torch.device("cpu")
Grid = tuple[int, int]


@pytest.fixture
def small_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small sequences take the ways of large ones."""
    monkeypatch.setattr(kernel_window, "_TILE", 2)
    monkeypatch.setattr(kernel_window, "_CHUNK", 4)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Queries times keys of every call of full attention: what the kernel has really computed."""
    seen: list[int] = []

    def counted(q_BHQE: Tensor, k_BGKE: Tensor, *rest: Any) -> Tensor:
        seen.append(len(q_BHQE) * q_BHQE.shape[2] * k_BGKE.shape[2])
        return full_attention(q_BHQE, k_BGKE, *rest)

    monkeypatch.setattr(kernel_window, "full_attention", counted)
    yield seen


def _text(length: int, first_step: int = 0, lengths: list[int] | None = None, *, causal: bool = True) -> Tokens:
    """Words, each row with its own number of them, and padding behind."""
    valid_BL = torch.ones(1, length, dtype=torch.bool)
    if lengths is not None:
        valid_BL = torch.arange(length) < torch.tensor(lengths)[:, None]
    place_BL = valid_BL.cumsum(dim=1) - 1
    return Tokens(
        step_BL=first_step + place_BL * causal,
        place_BL=place_BL,
        image_BL=torch.zeros_like(valid_BL),
        valid_BL=None if lengths is None else valid_BL,
    )


def _joint(
    grid: Grid, words: int, *, text_first: bool = False, extra: int = 0, lengths: list[int] | None = None
) -> Visibility:
    """An image that sees itself, and causal text that sees it, in either order of places."""
    image = grid[0] * grid[1] + extra
    parts = [image_tokens(image, grid, CPU), _text(words, 1, lengths)]
    spans = [(0, image), (image, image + words)]
    if text_first:
        parts, spans = parts[::-1], [(words, words + image), (0, words)]
    segments = tuple(
        Segment(start=a, end=b, causal=causal) for (a, b), causal in zip(spans, (False, True), strict=True)
    )
    tokens = join(parts)
    return Visibility(queries=tokens, keys=tokens, segments=segments, grid=grid)


def _words(length: int, lengths: list[int] | None = None) -> Visibility:
    tokens = _text(length, 0, lengths)
    return Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=length, causal=True),))


def test_words_that_see_each_other_see_as_far_back_as_ahead() -> None:
    tokens = _text(5, causal=False)
    visibility = Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=5, causal=False),))
    mask_B1QK = visibility.mask(Window(image=1, text=2))
    assert mask_B1QK is not None
    assert torch.equal(mask_B1QK[0, 0], torch.ones(5, 5).tril(1).triu(-1).bool())


def _qkv(length: int, *, batch: int = 2, heads: int = 4, shared: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, length, n, 8, generator=generator).transpose(1, 2) for n in (heads, shared, shared)]


def _dense(q_k_v: list[Tensor], visibility: Visibility, window: Window) -> Tensor:
    q_BHLE, k_BGLE, v_BGLE = q_k_v
    return full_attention(q_BHLE, k_BGLE, v_BGLE, visibility.mask(window), 0.0)


def _same(found_BHLE: Tensor, expected_BHLE: Tensor, visibility: Visibility) -> None:
    """Compare the answers to all queries but padding."""
    if visibility.queries.valid_BL is not None:
        shown_B1L1 = visibility.queries.valid_BL[:, None, :, None]
        found_BHLE, expected_BHLE = found_BHLE * shown_B1L1, expected_BHLE * shown_B1L1
    torch.testing.assert_close(found_BHLE, expected_BHLE)


@pytest.mark.parametrize("grid", [(10, 10), (11, 11), (9, 14), (23, 8), (1, 40), (40, 1)])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("extra", [0, 1, 3])
def test_tiles_of_a_picture_see_what_the_mask_shows(
    grid: Grid, side: int, extra: int, small_cuts: None, pairs: list[int]
) -> None:
    length, window = grid[0] * grid[1] + extra, Window(image=side, text=4)
    visibility, q_k_v = Visibility.of_image(length, grid, CPU), _qkv(length)
    expected = _dense(q_k_v, visibility, window)
    pairs.clear()
    _same(SlidingWindow(window)(*q_k_v, visibility, 0.0), expected, visibility)
    cut = (min(side + 1, grid[0]) * min(side + 1, grid[1])) * 4 < length  # whole where tiles would save little
    assert sum(pairs) < 2 * length**2 or not cut


@pytest.mark.parametrize(("grid", "side"), [((30, 30), 3), ((33, 25), 7), ((32, 32), 9)])
def test_tiles_of_their_real_size_do_too(grid: Grid, side: int, pairs: list[int]) -> None:
    length, window = grid[0] * grid[1] + 1, Window(image=side, text=4)
    visibility, q_k_v = Visibility.of_image(length, grid, CPU), _qkv(length)
    _same(SlidingWindow(window)(*q_k_v, visibility, 0.0), _dense(q_k_v, visibility, window), visibility)
    assert sum(pairs) < 2 * length**2


@pytest.mark.parametrize("side", [9, 19, 8_191])
def test_a_window_wider_than_the_picture_hides_nothing(side: int, small_cuts: None) -> None:
    visibility, q_k_v = Visibility.of_image(36, (6, 6), CPU), _qkv(36)
    found = SlidingWindow(Window(image=side, text=1))(*q_k_v, visibility, 0.0)
    full = full_attention(*q_k_v, None, 0.0)
    assert torch.allclose(found, full, atol=1e-6) == (side > 9)


@pytest.mark.parametrize("length", [40, 41, 47])
@pytest.mark.parametrize("words", [1, 3, 9])
@pytest.mark.parametrize("lengths", [None, [40, 17]])
def test_chunks_of_text_see_what_the_mask_shows(
    length: int, words: int, lengths: list[int] | None, small_cuts: None, pairs: list[int]
) -> None:
    visibility, q_k_v, window = _words(length, lengths), _qkv(length), Window(image=1, text=words)
    found = SlidingWindow(window)(*q_k_v, visibility, 0.0)
    assert sum(pairs) <= 2 * length * (words + 4)
    _same(found, _dense(q_k_v, visibility, window), visibility)


@pytest.mark.parametrize("grid", [(10, 10), (2, 3)], ids=["tiles", "small-picture"])
@pytest.mark.parametrize("words", [5, 50], ids=["short-text", "long-text"])
@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("extra", [0, 1])
def test_picture_and_text_see_what_the_mask_shows(
    grid: Grid, words: int, text_first: bool, padded: bool, extra: int, small_cuts: None, pairs: list[int]
) -> None:
    lengths = [words, words // 2] if padded else None
    visibility = _joint(grid, words, text_first=text_first, extra=extra, lengths=lengths)
    length, window = visibility.keys.step_BL.shape[1], Window(image=3, text=6)
    q_k_v = _qkv(length)
    found = SlidingWindow(window)(*q_k_v, visibility, 0.0)
    _same(found, _dense(q_k_v, visibility, window), visibility)
    whole = grid == (2, 3) and words == 5
    assert (sum(pairs) < 2 * length**2) != whole


def test_a_prompt_read_whole_before_causal_text_is_cut_by_the_window_too(small_cuts: None) -> None:
    prompt, words = _text(10, 0, causal=False), _text(40, 1)
    tokens = join([prompt, replace(words, place_BL=words.place_BL + 10)])
    segments = (Segment(start=0, end=10, causal=False), Segment(start=10, end=50, causal=True))
    visibility = Visibility(queries=tokens, keys=tokens, segments=segments)
    q_k_v, window = _qkv(50), Window(image=1, text=5)
    _same(SlidingWindow(window)(*q_k_v, visibility, 0.0), _dense(q_k_v, visibility, window), visibility)


# Steps of a picture of 100 tokens and 50 words behind it, and the segments that tell the same.
STEPS = {
    "causal": (list(range(150)), [(0, 150, True)]),
    "causal-picture": (list(range(150)), [(0, 100, True), (100, 150, True)]),
    "bidirectional": ([0] * 150, [(0, 150, False)]),
    "bidirectional-text": ([0] * 100 + [1] * 50, [(0, 100, False), (100, 150, False)]),
    "picture-in-halves": (
        [0] * 50 + [1] * 50 + list(range(2, 52)),
        [(0, 50, False), (50, 100, False), (100, 150, True)],
    ),
}


@pytest.mark.parametrize("kind", [*STEPS, "key-bias", "rows-differ", "padded-picture", "no-grid"])
def test_whatever_fits_no_shortcut_goes_through_the_mask(kind: str, small_cuts: None) -> None:
    visibility = _joint((10, 10), 50)
    if kind in STEPS:
        steps, spans = STEPS[kind]
        tokens = replace(visibility.keys, step_BL=torch.tensor([steps]))
        segments = tuple(Segment(start=start, end=end, causal=causal) for start, end, causal in spans)
        visibility = replace(visibility, queries=tokens, keys=tokens, segments=segments, masks={})
    elif kind == "key-bias":
        bias_BK = torch.randn(2, 150, generator=torch.Generator().manual_seed(3))
        visibility = replace(visibility, key_bias_BK=bias_BK, masks={})
    elif kind == "rows-differ":
        tokens = join([visibility.keys])
        tokens = replace(tokens, step_BL=torch.stack([tokens.step_BL[0], tokens.step_BL[0].clamp_max(30)]))
        visibility = replace(visibility, queries=tokens, keys=tokens, segments=(), masks={})
    elif kind == "padded-picture":
        tokens = replace(visibility.keys, valid_BL=torch.arange(150)[None] % 7 != 3)
        visibility = replace(visibility, queries=tokens, keys=tokens, masks={})
    else:
        visibility = replace(visibility, grid=None, masks={})
    q_k_v, window = _qkv(150), Window(image=3, text=6)
    _same(SlidingWindow(window)(*q_k_v, visibility, 0.0), _dense(q_k_v, visibility, window), visibility)


@pytest.mark.parametrize("kind", ["image-first", "text-first", "text"])
@pytest.mark.parametrize("count", [1, 25])
def test_words_read_behind_a_cache_see_what_they_see_in_one_pass(kind: str, count: int, small_cuts: None) -> None:
    visibility = _words(150) if kind == "text" else _joint((10, 10), 50, text_first=kind == "text-first")
    q_k_v = _qkv(150)
    kernel = SlidingWindow(Window(image=3, text=6))
    whole = kernel(*q_k_v, visibility, 0.0)
    order = [*range(50, 150), *range(50)] if kind == "text-first" else list(range(150))
    q_BHLE, k_BGLE, v_BGLE = (x[:, :, order] for x in q_k_v)
    for start in range(100, 150, count):
        end = start + count
        keys = _at(visibility.keys, order[:end])
        queries = _at(visibility.keys, order[start:end])
        segments = (Segment(start=0, end=count, causal=True),)
        step = Visibility(queries=queries, keys=keys, segments=segments, grid=(10, 10), start=start)
        read = kernel(q_BHLE[:, :, start:end], k_BGLE[:, :, :end], v_BGLE[:, :, :end], step, 0.0)
        torch.testing.assert_close(read, whole[:, :, order[start:end]])


def _at(tokens: Tokens, places: list[int]) -> Tokens:
    return Tokens(
        step_BL=tokens.step_BL[:, places], place_BL=tokens.place_BL[:, places], image_BL=tokens.image_BL[:, places]
    )


@pytest.mark.parametrize("visibility", [_joint((11, 9), 50, extra=1), _words(60)], ids=["joint", "text"])
def test_shortcuts_have_the_gradients_of_the_mask(visibility: Visibility, small_cuts: None) -> None:
    window, length = Window(image=3, text=6), visibility.keys.step_BL.shape[1]
    gradients = []
    for read in (SlidingWindow(window), None):
        q_k_v = [x.requires_grad_() for x in _qkv(length)]
        output = _dense(q_k_v, visibility, window) if read is None else read(*q_k_v, visibility, 0.0)
        output.square().sum().backward()
        gradients.append([x.grad for x in q_k_v])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("visibility", [_joint((10, 10), 40, extra=1), _words(60)], ids=["joint", "text"])
def test_shortcuts_drop_weights_where_they_are_told_to(visibility: Visibility, small_cuts: None) -> None:
    q_k_v = _qkv(visibility.keys.step_BL.shape[1])
    kernel = SlidingWindow(Window(image=3, text=6))
    same_BL = (kernel(*q_k_v, visibility, 0.0) == kernel(*q_k_v, visibility, 0.5)).all(dim=-1).all(dim=1)
    assert same_BL.float().mean() < 0.1


class _Largest(TorchDispatchMode):
    """The elements of the largest tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def _memory(visibility: Visibility) -> tuple[int, int]:
    """Return the elements of the largest tensor that training makes, and of all those it keeps for the way back."""
    q_k_v = [x.requires_grad_() for x in _qkv(visibility.keys.step_BL.shape[1], batch=1, heads=2, shared=1)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with _Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = SlidingWindow(Window(image=5, text=32))(*q_k_v, visibility, 0.0)
        output.sum().backward()
    return largest.elements, sum(kept.values())


@pytest.mark.parametrize("kind", ["image", "text", "joint"])
def test_memory_of_shortcuts_is_linear_in_the_length(kind: str) -> None:
    made = {
        side: {
            "image": lambda side: Visibility.of_image(side**2 + 1, (side, side), CPU),
            "text": lambda side: _words(side**2),
            "joint": lambda side: _joint((8, 8), side**2),
        }[kind](side)
        for side in (32, 64)
    }
    (largest, kept), (largest_of_4_times, kept_of_4_times) = _memory(made[32]), _memory(made[64])
    assert largest_of_4_times < 4_096**2 / 10  # a mask of all pairs would be ten times that
    assert largest_of_4_times < 4.5 * largest
    assert kept_of_4_times < 4.5 * kept
