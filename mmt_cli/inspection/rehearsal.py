"""A dry run of captioning and of training, phase by phase: a model of fake tensors, driven as the real one is.

B batch, R rows (beams), N tiles, H height, W width in pixels, T text tokens, P tokens of a question.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.inputs.preprocess import Preprocessing, normalise
from mmt_cli.inspection.ledger import Entry, Ledger
from mmt_cli.model.block import Block, MergingBlock
from mmt_cli.model.cache import KVCache
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import Images, ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the model is to do at a time.

    Attributes:
        batch: images.
        image_size: pixels of a side; the tower's own if None.
        tiles: images that stand for one picture.
        prompt: tokens of the prompt, the image's not among them.
        new: tokens that are written; in training those that are learned come behind the prompt's.
        beams: texts that go on beside each other.
        dtype: what weights and activations are in.
    """

    batch: int = 1
    image_size: int | None = None
    tiles: int = 1
    prompt: int = 1
    new: int = 30
    beams: int = 1
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run.

    Attributes:
        name: what is done.
        flops: floating-point operations.
        nbytes: bytes read of weights, and of keys and values in attention.
        peak: bytes that were taken at most, beside the weights.
    """

    name: str
    flops: int
    nbytes: int
    peak: int


def fill(model: MultimodalTransformer, dtype: torch.dtype) -> None:
    """Give a model without weights fake ones; a model that was built of them from the start would draw them, slowly."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(weight.shape, dtype=dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            module.register_buffer(name, torch.empty(buffer.shape, dtype=kind))
    model.tie()


def recompute(model: MultimodalTransformer) -> MultimodalTransformer:
    """Let every block keep only its input for the backward pass, as `mmt train --grad-checkpointing` does."""
    for block in model.modules():
        if isinstance(block, Block | MergingBlock):
            again = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
            )
            setattr(block, "forward", again)  # noqa: B010 — of this one alone
    return model


def _phase(name: str, *entries: Entry) -> Phase:
    return Phase(
        name=name,
        flops=sum(entry.flops for entry in entries),
        nbytes=sum(entry.nbytes for entry in entries),
        peak=max(entry.peak for entry in entries),
    )


def _preprocessing(config: ModelConfig, load: Load) -> Preprocessing:
    size = load.image_size or config.vision.image_size
    return dataclasses.replace(default_preprocessing(config), height=size, width=size)


def _ids(config: ModelConfig, tokens: int, rows: int, length: int) -> Tensor:
    """Return token_ids_BT with room for the image where it is spliced into this text."""
    image = tokens if config.placeholder_id is not None else 0
    return torch.zeros(rows, image + length, dtype=torch.long)


class _Eyes:
    """Looks at images, tower and connector apart."""

    def __init__(self, model: MultimodalTransformer, ledger: Ledger) -> None:
        self.tower: list[Entry] = []
        self.connector: list[Entry] = []
        self._books = ledger.books
        self._hooks = [
            part.register_forward_hook(lambda *_, entries=entries: entries.append(self._books.close_entry()))
            for part, entries in ((model.vision, self.tower), (model.connector, self.connector))
        ]
        self._model = model

    def see(self, pixels: Tensor, load: Load) -> ImageTokens:
        """Return what the model sees of preprocessed images."""
        whole = load.tiles == 1
        try:
            image = self._model.see(pixels if whole else Images(tiles_NCHW=pixels, count_B=(load.tiles,) * load.batch))
        finally:
            for hook in self._hooks:
                hook.remove()
        self.connector.append(self._books.close_entry())
        return image


def caption_phases(model: MultimodalTransformer, load: Load) -> tuple[list[Phase], int]:
    """Return the phases of captioning a batch, and the bytes of the cache at its end."""
    config, how = model.config, _preprocessing(model.config, load)
    model.eval()
    with torch.no_grad(), Ledger(model.state_dict().values()) as ledger:
        books = ledger.books
        shape = (load.batch * load.tiles, how.height, how.width, 3)
        samples_NHWC = torch.zeros(shape, dtype=torch.uint8)
        pixels_NCHW = normalise(samples_NHWC, how).to(load.dtype)
        phases = [_phase("preprocessing", books.close_entry())]
        eyes = _Eyes(model, ledger)
        image = eyes.see(pixels_NCHW, load)
        # The caller holds the samples on; the pixels go.
        del pixels_NCHW
        phases += [_phase("vision", *eyes.tower), _phase("connector", *eyes.connector)]
        seen = ledger.image_tokens = image.x_BND.shape[1]
        if config.prompt_encoder is not None:
            image = model.ask(_ids(config, seen, load.batch, load.prompt), image)
            phases.append(_phase("question", books.close_entry()))
        if not config.cacheable:
            ids_BT = _ids(config, seen, load.batch * load.beams, load.prompt + load.new - 1)
            many = image[torch.zeros(load.batch * load.beams, dtype=torch.long)]
            _chosen(model.read(ids_BT, many)[:, -1])
            return [*phases, _phase("step", books.close_entry())], 0
        length = 1 if config.prompt_encoder is not None else load.prompt
        places = 0 if config.prompt_encoder is not None else seen
        ids_BT = _ids(config, places, load.batch, length)
        logits_BV, cache = model.prefill(ids_BT, image, capacity=ids_BT.shape[1] + load.new)
        _chosen(logits_BV)
        phases.append(_phase("prefill", books.close_entry()))
        _step(model, cache, load)
        phases.append(_phase("step", books.close_entry()))
        return phases, _cache_bytes(cache)


def _step(model: MultimodalTransformer, cache: KVCache, load: Load) -> None:
    """Write the last token of each row."""
    rows = torch.zeros(load.batch * load.beams, dtype=torch.long)
    if load.beams > 1:
        cache.reorder(rows)
    cache.advance(max(load.new - 2, 0))
    if load.beams > 1:
        cache.reorder(rows)
    _chosen(model.step(rows[:, None], cache))


def _chosen(logits_RV: Tensor) -> None:
    """Take the memory that choosing a token does: log-probabilities and scores."""
    logprobs_RV = logits_RV.log_softmax(dim=-1)
    logprobs_RV.add(1.0)


def _cache_bytes(cache: KVCache) -> int:
    """Return the bytes of keys, values and what else layers keep."""
    total = 0
    for layer in cache.layers:
        for slots in (*(layer.sequence or ()), *(layer.memory or ())):
            total += sum(part.nbytes for part in _parts(slots))
        if layer.sums is not None:
            total += layer.sums.values_BHFE.nbytes + layer.sums.features_BHF.nbytes
    return total


def _parts(slots: Any) -> Sequence[Tensor]:
    return tuple(slots.parts)


def train_phases(model: MultimodalTransformer, load: Load) -> list[Phase]:
    """Return the phases of one step on a batch, all weights trained."""
    config, how = model.config, _preprocessing(model.config, load)
    model.train().zero_grad(set_to_none=True)
    with Ledger(model.state_dict().values()) as ledger:
        shape = (load.batch * load.tiles, 3, how.height, how.width)
        pixels = torch.zeros(shape, dtype=load.dtype)
        whole = load.tiles == 1
        image = model.see(pixels if whole else Images(tiles_NCHW=pixels, count_B=(load.tiles,) * load.batch))
        seen = ledger.image_tokens = image.x_BND.shape[1]
        text = load.prompt + load.new
        if config.prompt_encoder is not None:
            image = model.ask(_ids(config, seen, load.batch, load.prompt), image)
            seen, text = 0, load.new
        ids_BT = _ids(config, seen, load.batch, text)
        logits_BTV = model.read(ids_BT, image)
        targets_BT = ids_BT[:, -logits_BTV.shape[1] :]
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        del logits_BTV
        phases = [_phase("forward", ledger.books.close_entry())]
        loss.backward()  # type: ignore[no-untyped-call]
        phases.append(_phase("backward", ledger.books.close_entry()))
    model.zero_grad(set_to_none=True)
    return phases
