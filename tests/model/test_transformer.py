"""What holds for the model of every preset: who sees whom, caches, batches, padding. T text tokens, B rows."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli.errors import UsageError
from mmt_cli.model import attention, mask
from mmt_cli.model.cache import KVCache
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import Context
from mmt_cli.model.fused import FusedSequence
from mmt_cli.model.transformer import MultimodalTransformer, initialise

LENGTH = 7
NOISE = 1e-4
MOVED = 1e-3


def moved(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of each row of logits."""
    return (a - b).abs().amax(dim=-1)


def check_causality(model: MultimodalTransformer, tools: ModuleType) -> None:
    token_ids_BT, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(model.config, 2)
    before = model(token_ids_BT, pixels)
    assert before.isfinite().all()
    for place in range(LENGTH):
        changed_BT = token_ids_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % tools.VOCABULARY
        difference = moved(model(changed_BT, pixels), before)
        assert (difference[:, :place] <= NOISE).all(), f"token {place} is seen before its turn"
        assert (difference[:, place:] >= MOVED).all(), f"token {place} is not seen after it"


def check_cache(model: MultimodalTransformer, tools: ModuleType) -> None:
    """A token a step, and several, from prompts of one length."""
    token_ids_BT = tools.random_ids(3, LENGTH)
    image = model.see(tools.random_pixels(model.config, 3))
    whole = model.read(token_ids_BT, image)
    logits_BV, cache = model.prefill(token_ids_BT[:, :2], image, capacity=LENGTH)
    assert moved(logits_BV, whole[:, 1]).max() <= NOISE
    for start, end in ((2, 3), (3, 6), (6, 7)):
        logits_BV = model.step(token_ids_BT[:, start:end], cache)
        cache.advance(end - start)
        assert moved(logits_BV, whole[:, end - 1]).max() <= NOISE


def check_image(model: MultimodalTransformer, tools: ModuleType) -> None:
    token_ids_BT = tools.random_ids(2, LENGTH)
    one, other = (model(token_ids_BT, tools.random_pixels(model.config, 2, seed)) for seed in (1, 2))
    assert (moved(one, other) >= MOVED).all()
    assert (one != other).all()


def check_batch(model: MultimodalTransformer, tools: ModuleType) -> None:
    token_ids_BT, pixels = tools.random_ids(4, LENGTH), tools.random_pixels(model.config, 4)
    together = model(token_ids_BT, pixels)
    for row in range(4):
        alone = model(token_ids_BT[row : row + 1], pixels[row : row + 1])
        assert moved(alone, together[row : row + 1]).max() <= NOISE


def test_logits_are_float32_one_row_a_text_token_or_one_in_all(model: MultimodalTransformer, tools: ModuleType) -> None:
    logits = model(tools.random_ids(2, LENGTH), tools.random_pixels(model.config, 2))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, LENGTH if model.config.cacheable else 1, tools.VOCABULARY)


def test_another_image_changes_every_text_logit(model: MultimodalTransformer, tools: ModuleType) -> None:
    check_image(model, tools)


@pytest.mark.parametrize("sides", [(32, 32), (-32, 32), (0, 32)], ids=["larger", "other-aspect", "wide"])
def test_images_of_other_sides_are_read_whole(
    model: MultimodalTransformer, tools: ModuleType, sides: tuple[int, int]
) -> None:
    """Every part of them counts, and each batch row is itself; a kernel of one length refuses them."""
    size = model.config.vision.image_size
    height, width = max(size + sides[0], 32), size + sides[1]
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    if any(part.block.kernel.kind == "linformer" for part in image_parts(model.config)):
        with pytest.raises(UsageError, match="linformer"):
            model.see(pixels)
        return
    if model.config.placeholder_id is not None:
        image = model.see(pixels)
        assert image.x_BND.shape[1] > model.config.num_image_tokens or sides[0] < 0
        return
    ids = tools.random_ids(2, 3)
    before = model(ids, pixels)
    assert before.isfinite().all()
    assert moved(model(ids[:1], pixels[:1]), before[:1]).max() <= NOISE
    for corner in ((slice(0, 32), slice(0, 32)), (slice(-32, None), slice(-32, None))):
        changed = pixels.clone()
        changed[:, :, corner[0], corner[1]] += 1
        assert (moved(model(ids, changed), before) >= MOVED).all()


def image_parts(config: ModelConfig) -> list[Any]:
    return [part for part in (config.vision, config.connector) if hasattr(part, "block")]


def test_pixels_that_cannot_be_read_are_refused_with_both_values(
    model: MultimodalTransformer, tools: ModuleType
) -> None:
    size = model.config.vision.image_size
    with pytest.raises(UsageError, match="1 channels, the model reads 3"):
        model.see(torch.zeros(1, 1, size, size))
    with pytest.raises(UsageError, match=r"\b7 x 8"):
        model.see(torch.zeros(1, 3, 7, 8))


def test_each_word_changes_the_one_readout_of_a_bidirectional_model(tools: ModuleType) -> None:
    model = tools.build_model(tools.small_config("seed"))
    token_ids_BT, pixels = tools.random_ids(2, LENGTH), tools.random_pixels(model.config, 2)
    before = model(token_ids_BT, pixels)
    for place in range(LENGTH):
        changed_BT = token_ids_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % tools.VOCABULARY
        assert (moved(model(changed_BT, pixels), before) >= MOVED).all()


def test_a_later_word_changes_no_earlier_logit(cacheable_model: MultimodalTransformer, tools: ModuleType) -> None:
    check_causality(cacheable_model, tools)


def test_cached_steps_give_the_logits_of_one_reading(cacheable_model: MultimodalTransformer, tools: ModuleType) -> None:
    check_cache(cacheable_model, tools)


def test_a_batch_gives_the_logits_of_each_row_alone(model: MultimodalTransformer, tools: ModuleType) -> None:
    check_batch(model, tools)


def test_a_word_means_another_thing_at_another_place(model: MultimodalTransformer, tools: ModuleType) -> None:
    token_ids_BT, pixels = tools.random_ids(1, 3), tools.random_pixels(model.config, 1)
    swapped_BT = token_ids_BT[:, [1, 0, 2]]
    assert moved(model(token_ids_BT, pixels)[:, -1], model(swapped_BT, pixels)[:, -1]).min() >= MOVED


def test_where_a_patch_lies_matters(model: MultimodalTransformer, tools: ModuleType) -> None:
    token_ids_BT, pixels = tools.random_ids(1, 3), tools.random_pixels(model.config, 1)
    half = pixels.shape[-1] // 2
    turned = pixels.roll(half, dims=-1)
    assert (moved(model(token_ids_BT, pixels), model(token_ids_BT, turned)) >= MOVED).all()


def test_padding_behind_the_words_changes_nothing(model: MultimodalTransformer, tools: ModuleType) -> None:
    pixels, lengths = tools.random_pixels(model.config, 3), (2, LENGTH, 5)
    valid_BT = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    token_ids_BT = tools.random_ids(3, LENGTH)
    padded = model(token_ids_BT, pixels, valid_BT=valid_BT)
    other_padding = model(token_ids_BT.where(valid_BT, 5), pixels, valid_BT=valid_BT)
    for row, length in enumerate(lengths):
        alone = model(token_ids_BT[row : row + 1, :length], pixels[row : row + 1])[0]
        for logits in (padded, other_padding):
            assert moved(logits[row, : len(alone)], alone).max() <= NOISE
    assert padded.isfinite().all()


def test_prompts_of_unequal_lengths_go_on_as_each_would_alone(
    cacheable_model: MultimodalTransformer, tools: ModuleType
) -> None:
    model, lengths = cacheable_model, (2, 5, 3)
    image, ids = model.see(tools.random_pixels(model.config, 3)), tools.random_ids(3, LENGTH + 3)
    prompt_BT, new_BT = ids[:, :5], ids[:, 5:]
    valid_BT = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    logits_BV, cache = model.prefill(prompt_BT, image, valid_BT=valid_BT, capacity=5 + new_BT.shape[1])
    rows = [prompt_BT[row, :length] for row, length in enumerate(lengths)]
    for start, end in ((0, 0), (0, 1), (1, 3), (3, 5)):
        if end:
            logits_BV = model.step(new_BT[:, start:end], cache)
            cache.advance(end - start)
        rows = [torch.cat([row, new_BT[index, start:end]]) for index, row in enumerate(rows)]
        for index, row in enumerate(rows):
            alone = model.read(row[None], image[index : index + 1])[0, -1]
            assert moved(logits_BV[index], alone) <= NOISE


@pytest.mark.parametrize(
    "kept",
    [[0, 0, 0, 1, 1, 1], [1, 0], [2, 0, 1], [1], [0, 0, 1], [2, 2, 2]],
    ids=lambda rows: "-".join(map(str, rows)),
)
def test_reordered_rows_go_on_as_if_they_had_always_been_there(
    cacheable_model: MultimodalTransformer, tools: ModuleType, kept: list[int]
) -> None:
    """Beams multiply rows, mix them and drop them, more than once; unlike prompts and images tell rows apart."""
    model, ids = cacheable_model, tools.random_ids(3, 4)
    image = model.see(tools.random_pixels(model.config, 3))
    valid_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    _, cache = model.prefill(ids, image, valid_BT=valid_BT, capacity=8)
    texts = [row[: int(valid.sum())] for row, valid in zip(ids, valid_BT, strict=True)]
    row_R = torch.tensor(kept)
    for turn in range(3):
        if turn == 2:
            row_R = torch.arange(len(texts)).flip(0)
        cache.reorder(row_R)
        image, texts = image[row_R], [texts[row] for row in row_R]
        new_R1 = tools.random_ids(len(texts), 1, seed=turn)
        logits_RV = model.step(new_R1, cache)
        cache.advance(1)
        texts = [torch.cat([text, new]) for text, new in zip(texts, new_R1, strict=True)]
        for index, text in enumerate(texts):
            alone = model.read(text[None], image[index : index + 1])[0, -1]
            assert moved(logits_RV[index], alone) <= NOISE
        row_R = torch.arange(len(texts))


def test_a_trimmed_cache_has_forgotten_its_last_tokens(
    cacheable_model: MultimodalTransformer, tools: ModuleType
) -> None:
    model, ids = cacheable_model, tools.random_ids(2, LENGTH)
    image = model.see(tools.random_pixels(model.config, 2))
    valid_BT = torch.tensor([[True, True, True], [True, False, False]])
    _, cache = model.prefill(ids[:, :3], image, valid_BT=valid_BT, capacity=LENGTH)
    expected = model.step(ids[:, 3:5], cache)
    cache.advance(2)
    model.step(ids[:, 5:7], cache)
    cache.advance(2)
    cache.trim(4)
    assert moved(model.step(ids[:, 3:5], cache), expected).max() <= NOISE


def test_a_step_that_is_not_kept_leaves_the_cache_as_it_was(
    cacheable_model: MultimodalTransformer, tools: ModuleType
) -> None:
    model, ids = cacheable_model, tools.random_ids(2, LENGTH)
    image = model.see(tools.random_pixels(model.config, 2))
    _, cache = model.prefill(ids[:, :3], image, capacity=LENGTH)
    expected = model.step(ids[:, 3:4], cache)
    model.step(ids[:, 4:7], cache)
    assert moved(model.step(ids[:, 3:4], cache), expected).max() <= NOISE


def test_dropout_acts_in_training_alone(model: MultimodalTransformer, tools: ModuleType) -> None:
    again = tools.callable_model(model.config)
    ids, pixels = tools.random_ids(2, 3), tools.random_pixels(model.config, 2)
    assert torch.equal(again(ids, pixels), again(ids, pixels))
    again.train()
    has_dropout = model.config.text.block.dropout > 0
    places = torch.arange(3)[None]
    assert torch.equal(again.text(ids, places), again.text(ids, places)) != has_dropout


def test_a_new_model_for_training_has_no_dead_start(model: MultimodalTransformer, tools: ModuleType) -> None:
    """Positions and class token begin at small random values, not at zero; the image reaches the logits at once."""
    torch.manual_seed(0)
    built = MultimodalTransformer(model.config)
    initialise(built)
    fresh = tools.callable_model(model.config)
    fresh.load_state_dict(built.state_dict())
    learned = [p for name, p in built.named_parameters() if name.endswith(("positions", "class_token"))]
    assert all(0.005 < parameter.std() < 0.05 for parameter in learned)
    ids, pixels = tools.random_ids(2, 3), [tools.random_pixels(model.config, 2, seed) for seed in (1, 2)]
    logits = [fresh(ids, images) for images in pixels]
    assert logits[0].log_softmax(dim=-1).min() > -20
    closed = not model.config.joint and model.config.fusion.gate != "none"
    assert (logits[0] == logits[1]).all() if closed else (logits[0] != logits[1]).any(dim=-1).all()
    fresh.requires_grad_(True)
    fresh(ids, pixels[0]).square().mean().backward()
    gates = [p for name, p in fresh.named_parameters() if ".gate." in name or ".gates." in name]
    assert bool(gates) == (model.config.fusion.gate != "none")
    assert all((gate == 0).all() and (gate.grad != 0).any() for gate in gates), "a gate that can never open"


# The three mistakes that the original listing is known for, or that are easily made in its repair: the tests above
# must see each of them.


def test_a_mask_that_hides_nothing_is_noticed(
    cacheable_model: MultimodalTransformer, tools: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MultimodalTransformer.run

    def unmasked(self: MultimodalTransformer, fused: FusedSequence, cache: KVCache | None = None) -> Tensor:
        return run(self, dataclasses.replace(fused.bidirectional(), readout=fused.readout), cache)

    monkeypatch.setattr(MultimodalTransformer, "run", unmasked)
    with pytest.raises(AssertionError):
        check_causality(cacheable_model, tools)


def test_a_wrong_position_offset_is_noticed(
    cacheable_model: MultimodalTransformer, tools: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MultimodalTransformer.step

    def shifted(self: MultimodalTransformer, token_ids_BT: Tensor, cache: KVCache) -> Tensor:
        cache.position_B = cache.position_B + 1
        try:
            return step(self, token_ids_BT, cache)
        finally:
            cache.position_B = cache.position_B - 1

    monkeypatch.setattr(MultimodalTransformer, "step", shifted)
    with pytest.raises(AssertionError):
        check_cache(cacheable_model, tools)


def test_attention_across_the_batch_is_noticed(
    model: MultimodalTransformer, tools: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original listing fed batch-first input to an attention that reads the first axis as the sequence."""
    forward = attention.SelfAttention.forward

    def across(self: attention.SelfAttention, x_BLD: Tensor, context: Context) -> Tensor:
        visibility = mask.Visibility.of_image(x_BLD.shape[0], None, x_BLD.device)
        return forward(self, x_BLD.transpose(0, 1), Context(visibility=visibility)).transpose(0, 1)

    monkeypatch.setattr(attention.SelfAttention, "forward", across)
    with pytest.raises(AssertionError):
        check_image(model, tools)
        check_batch(model, tools)


def test_beams_of_one_image_share_its_memory(tools: ModuleType) -> None:
    model = tools.build_model(tools.small_config("mini"))
    image = model.see(tools.random_pixels(model.config, 3))
    _, cache = model.prefill(tools.random_ids(3, 2), image, capacity=4)
    found = []
    for rows in ([0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [0, 2, 3], [1, 2]):
        cache.reorder(torch.tensor(rows))
        memory = next(layer.memory for layer in cache.layers if layer.memory is not None)
        found.append(len(memory[0].parts[0]))
    assert found == [3, 3, 2, 3, 1]


def test_the_last_block_goes_on_with_the_text_alone_behind_its_attention(tools):
    """Nothing reads the picture's tokens any more, which would be most of the work of that block's MLP."""
    model = tools.build_model(tools.small_config("seed-prefix"))
    seen: list[int] = []
    for block in model.blocks:
        block["mlp"].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    ids, pixels = tools.random_ids(2, 3), tools.random_pixels(model.config, 2)
    whole = 3 + model.config.num_image_tokens
    read = model(ids, pixels)
    assert seen == [whole] * len(model.blocks)  # with gradients all is read, that each weight gets one
    with torch.no_grad():
        torch.testing.assert_close(model(ids, pixels), read)
    assert seen[len(model.blocks) :] == [whole] * (len(model.blocks) - 1) + [3]
