"""Random features against softmax attention. B batch, H heads, L sequence, Q queries, K keys, E width, F features."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmt_cli.model import kernel_performer
from mmt_cli.model.cache import LayerCache
from mmt_cli.model.kernels import FullAttention, Performer
from mmt_cli.model.mask import Segment, Tokens, Visibility, image_tokens, join

CPU = torch.device("cpu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short sequences take several chunks."""
    monkeypatch.setattr(kernel_performer, "_CHUNK", 4)


def _text(length: int, first_step: int = 0, valid_BL: Tensor | None = None) -> Tokens:
    present_BL = torch.ones(1, length, dtype=torch.bool) if valid_BL is None else valid_BL
    place_BL = present_BL.cumsum(dim=1) - 1
    image_BL = torch.zeros_like(present_BL)
    return Tokens(step_BL=first_step + place_BL, place_BL=place_BL, image_BL=image_BL, valid_BL=valid_BL)


def _words(length: int, valid_BL: Tensor | None = None) -> Visibility:
    tokens = _text(length, 0, valid_BL)
    return Visibility(queries=tokens, keys=tokens, segments=(Segment(start=0, end=length, causal=True),))


def _image(length: int) -> Visibility:
    return Visibility.of_image(length, None, CPU)


def _joint(image: int, words: int, *, text_first: bool = False, valid_BL: Tensor | None = None) -> Visibility:
    parts = [image_tokens(image, None, CPU), _text(words, 1, valid_BL)]
    segments = (Segment(start=0, end=image, causal=False), Segment(start=image, end=image + words, causal=True))
    if text_first:
        parts = parts[::-1]
        segments = (Segment(start=words, end=image + words, causal=False), Segment(start=0, end=words, causal=True))
    tokens = join(parts)
    return Visibility(queries=tokens, keys=tokens, segments=segments)


def _behind(visibility: Visibility, start: int, count: int = 1) -> Visibility:
    """Return that of `count` tokens read behind `start` that a cache holds."""

    def cut(span: slice) -> Tokens:
        keys = visibility.keys
        valid_BL = None if keys.valid_BL is None else keys.valid_BL[:, span]
        return Tokens(
            step_BL=keys.step_BL[:, span],
            place_BL=keys.place_BL[:, span],
            image_BL=keys.image_BL[:, span],
            valid_BL=valid_BL,
        )

    segments = (Segment(start=0, end=count, causal=True),)
    queries, keys = cut(slice(start, start + count)), cut(slice(0, start + count))
    return Visibility(queries=queries, keys=keys, segments=segments, start=start)


def _qkv(length: int, *, shared: int = 4, width: int = 8, seed: int = 0, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, length, width, generator=generator) for heads in (4, shared, shared)]


def _performer(features: int = 32, width: int = 8, seed: int = 0) -> Performer:
    return Performer(head_width=width, features=features, seed=seed)


def _defined(kernel: Performer, q_k_v: list[Tensor], visibility: Visibility) -> Tensor:
    """Return the estimate by its definition: a table of positive weights, masked, each row summing to one."""
    q_BHQE, k_BHKE, v_BHKE = (x.double().repeat_interleave(4 // x.shape[1], dim=1) for x in q_k_v)

    def features(x: Tensor) -> Tensor:
        x = x / x.shape[-1] ** 0.25
        return (x @ kernel.projection.double().T - x.square().sum(dim=-1, keepdim=True) / 2).exp()

    weights_BHQK = features(q_BHQE) @ features(k_BHKE).mT
    mask_B1QK = visibility.mask()
    if mask_B1QK is not None:
        weights_BHQK = weights_BHQK * mask_B1QK
    return (weights_BHQK / weights_BHQK.sum(dim=-1, keepdim=True) @ v_BHKE).float()


# What the root of the mean squared error may be by number of features, values being of size 1: E is 16, scores have a
# standard deviation of 1/4. It halves with four times as many. Early words, which read few others, err most.
ERROR_BOUNDS = {
    "bidirectional": {64: 0.034, 256: 0.021, 1_024: 0.0105, 4_096: 0.006},
    "causal": {64: 0.055, 256: 0.034, 1_024: 0.018, 4_096: 0.0095},
}


@pytest.mark.parametrize("kind", ERROR_BOUNDS)
def test_the_error_falls_with_the_number_of_features(kind: str) -> None:
    visibility = _image(128) if kind == "bidirectional" else _words(128)
    errors = {}
    for features in ERROR_BOUNDS[kind]:
        squared = []
        for seed in range(6):
            q_BHLE, k_BHLE, v_BHLE = _qkv(128, width=16, seed=seed)
            q_k_v = (q_BHLE / 2, k_BHLE / 2, v_BHLE)
            estimate_BHLE = _performer(features, 16, 100 + seed)(*q_k_v, visibility, 0.0)
            squared.append((estimate_BHLE - FullAttention()(*q_k_v, visibility, 0.0)).square().mean())
        errors[features] = torch.stack(squared).mean().sqrt().item()
    assert all(errors[features] < bound for features, bound in ERROR_BOUNDS[kind].items()), errors
    assert errors[64] > 5 * errors[4_096], errors


def test_features_are_normal_vectors_at_right_angles() -> None:
    projection_FE = torch.cat([_performer(64, 16, seed).projection for seed in range(100)])
    for block in projection_FE.split(16):
        cosines = torch.nn.functional.normalize(block, dim=1) @ torch.nn.functional.normalize(block, dim=1).T
        torch.testing.assert_close(cosines, torch.eye(16), atol=1e-5, rtol=0)
    assert projection_FE.mean().item() == pytest.approx(0.0, abs=0.02)
    assert projection_FE.std().item() == pytest.approx(1.0, abs=0.02)
    assert projection_FE.pow(4).mean().item() == pytest.approx(3.0, abs=0.1)
    # Each entry by itself: a decomposition whose signs are not drawn prefers some directions.
    assert projection_FE.view(-1, 16, 16).mean(dim=0).abs().max().item() < 0.25
    assert projection_FE.view(-1, 16, 16)[:, range(16), range(16)].mean().item() == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(
    "visibility",
    [
        _image(19),
        _words(19),
        _words(19, torch.arange(19) < torch.tensor([[19], [11]])),
        _joint(10, 9),
        _joint(10, 9, text_first=True),
        _joint(10, 9, valid_BL=torch.arange(9) < torch.tensor([[4], [9]])),
        _joint(10, 9, text_first=True, valid_BL=torch.arange(9) < torch.tensor([[4], [9]])),
    ],
    ids=["image", "text", "padded", "image-first", "text-first", "image-first-padded", "text-first-padded"],
)
@pytest.mark.parametrize("shared", [4, 2, 1])
def test_sums_give_what_a_table_of_weights_gives(visibility: Visibility, shared: int, small_chunks: None) -> None:
    q_k_v, kernel = _qkv(19, shared=shared), _performer()
    found = kernel(*q_k_v, visibility, 0.0)
    torch.testing.assert_close(found, _defined(kernel, q_k_v, visibility), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text_first", [False, True])
def test_a_later_word_changes_nothing_before_it(text_first: bool, small_chunks: None) -> None:
    visibility, kernel = _joint(6, 13, text_first=text_first), _performer()
    q, k, v = _qkv(19)
    before = kernel(q, k, v, visibility, 0.0)
    words = 0 if text_first else 6
    for word in range(13):
        changed = [k.clone(), v.clone()]
        for x in changed:
            x[:, :, words + word] += 3.0
        after = kernel(q, *changed, visibility, 0.0)
        same_L = (before == after).all(dim=-1).all(dim=1).all(dim=0)
        assert same_L[words : words + word].all()
        assert not same_L[words + word : words + 13].any()
        image = slice(13, 19) if text_first else slice(0, 6)
        assert same_L[image].all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shared", [4, 2])
def test_words_read_one_by_one_through_the_cache_read_the_same(padded: bool, shared: int, small_chunks: None) -> None:
    valid_BL = torch.arange(20)[None].repeat(2, 1)
    valid_BL = (valid_BL < torch.tensor([[3], [6]])) | (valid_BL >= 6) if padded else None
    visibility, q_k_v, kernel = _joint(7, 20, valid_BL=valid_BL), _qkv(27, shared=shared), _performer()
    whole = kernel(*q_k_v, visibility, 0.0)
    cache = _Cached(kernel, q_k_v, visibility)
    cache.prefill(13)
    for place in range(13, 27):
        torch.testing.assert_close(cache.read(place), whole[:, :, place : place + 1], atol=1e-5, rtol=1e-5)
    assert cache.layer.sums is not None
    assert cache.layer.sums.count == 26


class _Cached:
    """Decoding as the model does it: keys and values written behind what is kept, then read."""

    def __init__(self, kernel: Performer, q_k_v: list[Tensor], visibility: Visibility) -> None:
        self.kernel, self.q_k_v, self.visibility = kernel, q_k_v, visibility
        self.layer = LayerCache(q_k_v[0].shape[2])

    def prefill(self, count: int) -> Tensor:
        image, text = self.visibility.segments
        tokens = _behind(self.visibility, 0, count).keys
        segments = (image, Segment(start=text.start, end=count, causal=True))
        return self._run(0, count, Visibility(queries=tokens, keys=tokens, segments=segments))

    def read(self, start: int, count: int = 1) -> Tensor:
        return self._run(start, count, _behind(self.visibility, start, count))

    def _run(self, start: int, count: int, visibility: Visibility) -> Tensor:
        q_BHQE, k_BHQE, v_BHQE = (x[:, :, start : start + count] for x in self.q_k_v)
        kept = self.layer.write(k_BHQE, v_BHQE, start)
        read: Tensor = self.kernel(q_BHQE, *kept, visibility, 0.0, self.layer)
        return read


def test_tokens_that_are_not_kept_leave_no_trace(small_chunks: None) -> None:
    visibility, q_k_v, kernel = _joint(7, 20), _qkv(27), _performer()
    whole = kernel(*q_k_v, visibility, 0.0)
    cache = _Cached(kernel, q_k_v, visibility)
    cache.prefill(10)
    for start in (10, 11, 16):
        cache.q_k_v = [x + 2.0 for x in q_k_v]
        cache.read(start, 5)  # tried, and not kept
        cache.q_k_v = q_k_v
        read = cache.read(start, 5)
        torch.testing.assert_close(read, whole[:, :, start : start + 5], atol=1e-5, rtol=1e-5)


def test_what_is_trimmed_is_forgotten(small_chunks: None) -> None:
    visibility, q_k_v, kernel = _joint(7, 20), _qkv(27), _performer()
    other = [torch.cat([x[:, :, :12], x[:, :, 12:] + 2.0], dim=2) for x in q_k_v]
    cache = _Cached(kernel, other, visibility)
    cache.prefill(10)
    for place in range(10, 20):
        cache.read(place)
    cache.q_k_v = q_k_v  # eight trimmed, and others read in their place
    whole = kernel(*q_k_v, visibility, 0.0)
    for place in range(12, 27):
        torch.testing.assert_close(cache.read(place), whole[:, :, place : place + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0], [0, 1, 1]])
def test_reordered_rows_take_their_sums_along(rows: list[int], small_chunks: None) -> None:
    visibility, q_k_v, kernel = _joint(7, 20), _qkv(27), _performer()
    cache = _Cached(kernel, q_k_v, visibility)
    cache.prefill(10)
    for place in range(10, 15):
        cache.read(place)
    cache.layer.reorder(torch.tensor(rows), 15, torch.tensor(rows))
    cache.q_k_v = [x[rows] for x in q_k_v]
    whole = kernel(*cache.q_k_v, visibility, 0.0)
    for place in range(15, 20):
        torch.testing.assert_close(cache.read(place), whole[:, :, place : place + 1], atol=1e-5, rtol=1e-5)


def test_a_step_adds_only_the_keys_that_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    visibility, q_k_v, kernel = _joint(7, 20), _qkv(27), _performer()
    cache = _Cached(kernel, q_k_v, visibility)
    cache.prefill(20)
    cache.read(20)
    computed = []
    of_keys = Performer._key_features

    def counted(self: Performer, k: Tensor, v: Tensor, valid: Tensor | None, a: int, b: int) -> tuple[Tensor, Tensor]:
        computed.append((a, b))
        return of_keys(self, k, v, valid, a, b)

    monkeypatch.setattr(Performer, "_key_features", counted)
    cache.read(21)
    assert computed == [(20, 21), (21, 22)]


def test_padding_reads_as_if_it_were_not_there(small_chunks: None) -> None:
    q_k_v, kernel = _qkv(19), _performer()
    padded = kernel(*q_k_v, _words(19, torch.arange(19) < torch.tensor([[19], [11]])), 0.0)
    alone = kernel(*(x[1:, :, :11] for x in q_k_v), _words(11), 0.0)
    torch.testing.assert_close(padded[1:, :, :11], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("visibility", [_image(19), _joint(10, 9)], ids=["image", "joint"])
def test_gradients_are_those_of_the_definition(visibility: Visibility, small_chunks: None) -> None:
    kernel, gradients = _performer(), []
    for read in (lambda x: kernel(*x, visibility, 0.0), lambda x: _defined(kernel, x, visibility)):
        q_k_v = [x.requires_grad_() for x in _qkv(19)]
        read(q_k_v).square().sum().backward()
        gradients.append([x.grad for x in q_k_v])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_sums_are_float32_whatever_the_model_computes_in() -> None:
    kernel, visibility = _performer(64), _words(60)
    q_k_v = [x.bfloat16() for x in _qkv(60)]
    exact = kernel(*(x.float() for x in q_k_v), visibility, 0.0)
    plain = kernel(*q_k_v, visibility, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kernel(*(x.float() for x in q_k_v), visibility, 0.0)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain, exact.bfloat16())
    assert torch.equal(cast, exact)


def test_saved_features_come_back() -> None:
    visibility, q_k_v = _image(19), _qkv(19)
    first, second = _performer(seed=1), _performer(seed=2)
    expected = first(*q_k_v, visibility, 0.0)
    assert not torch.allclose(second(*q_k_v, visibility, 0.0), expected)
    assert set(first.state_dict()) == {"projection"}
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(*q_k_v, visibility, 0.0), expected)


def test_the_same_seed_draws_the_same_features_and_no_others() -> None:
    before = torch.get_rng_state()
    assert torch.equal(_performer(seed=1).projection, _performer(seed=1).projection)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("width", [8, 64, 256])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_long_queries_and_keys_give_numbers_still(width: int, scale: float) -> None:
    q_k_v = [(x * scale).requires_grad_() for x in _qkv(19, width=width)]
    kernel = _performer(64, width)
    read = kernel(*q_k_v, _words(19), 0.0)
    read.square().sum().backward()
    assert read.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in q_k_v)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_key_that_is_a_feature_itself_does_not_overflow(width: int) -> None:
    kernel = _performer(64, width)
    k_1HKE = (kernel.projection * width**0.25).expand(1, 4, -1, -1)
    v_1HKE = torch.ones_like(k_1HKE)
    read = kernel(k_1HKE, k_1HKE, v_1HKE, _image(64), 0.0)
    torch.testing.assert_close(read, v_1HKE)


def test_dropout_has_no_weights_to_drop() -> None:
    q_k_v, kernel = _qkv(19), _performer()
    assert torch.equal(kernel(*q_k_v, _image(19), 0.0), kernel(*q_k_v, _image(19), 0.5))


def test_what_segments_cannot_tell_is_refused() -> None:
    q_k_v, kernel = _qkv(19), _performer()
    with pytest.raises(AssertionError, match="one order"):
        kernel(*q_k_v, replace(_image(19), segments=()), 0.0)
    with pytest.raises(AssertionError, match="key bias"):
        kernel(*q_k_v, replace(_image(19), key_bias_BK=torch.zeros(1, 19)), 0.0)


class _Largest(TorchDispatchMode):
    """The elements of the largest tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def _memory(visibility: Visibility) -> tuple[int, int]:
    """Return the elements of the largest tensor that training makes, and of all those it keeps for the way back."""
    q_k_v = [x.requires_grad_() for x in _qkv(visibility.keys.step_BL.shape[1], batch=1)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with _Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _performer()(*q_k_v, visibility, 0.0).sum().backward()
    return largest.elements, sum(kept.values())


@pytest.mark.parametrize("made", [_image, _words], ids=["bidirectional", "causal"])
def test_memory_is_linear_in_the_length(made: Any) -> None:
    (_, kept), (largest_of_4_times, kept_of_4_times) = _memory(made(1_024)), _memory(made(4_096))
    assert largest_of_4_times < 4 * 4_096**2 / 10  # a table of all weights would be ten times that
    assert kept_of_4_times < 4.5 * kept
