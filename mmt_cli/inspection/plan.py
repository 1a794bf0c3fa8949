"""What running a model would take: work by phase, bytes read, memory; by a dry run that computes nothing.

The model is built of torch's fake tensors and driven as captioning and training drive it. So what is counted is what
the code does, not what a formula says that it should.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmt_cli.checkpoint.reference import HubOptions, open_reference
from mmt_cli.errors import UsageError
from mmt_cli.inspection.rehearsal import Load, Phase, caption_phases, fill, recompute, train_phases
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer

MEMORIES = (8, 16, 24, 80)  # GB, of 10⁹ bytes
_FLOAT32 = 4
_FIELDS = {
    "--batch-size": "batch",
    "--image-size": "image_size",
    "--tiles": "tiles",
    "--prompt-tokens": "prompt",
    "--gen-tokens": "new",
    "--num-beams": "beams",
}
_ADAMW = 2  # averages that it keeps of each weight's gradient, in float32
BATCHES_AHEAD = 4  # whose images training has read while it does a step
_FURTHER = 16  # images by which the two points of a line lie apart: in smaller batches other parts are the largest
_MOST = 1_000_000  # images at a time that "fits" counts up to


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model takes.

    Attributes:
        load: for what.
        parameters: how many it has.
        weights: bytes of its weights as captioning holds them.
        captioning: its phases; the step is the last one, with the most to look back at.
        cache: bytes of keys and values at the end of a text.
        training: the phases of one step.
        recomputed: the same, with each block's activations computed again in the backward pass.
        states: bytes of weights, gradients' averages and copies in training, and of the images of batches to come,
            beside what the phases take.
    """

    load: Load
    parameters: int
    weights: int
    captioning: tuple[Phase, ...]
    cache: int
    training: tuple[Phase, ...]
    recomputed: tuple[Phase, ...]
    states: int

    @property
    def caption_peak(self) -> int:
        """Bytes that captioning takes at most, weights included."""
        return self.weights + max(phase.peak for phase in self.captioning)

    @property
    def train_peak(self) -> int:
        """Bytes that a step of training takes at most, all included."""
        return self.states + max(phase.peak for phase in self.training)

    @property
    def recomputed_peak(self) -> int:
        """The same with activations computed again."""
        return self.states + max(phase.peak for phase in self.recomputed)

    def to_json(self) -> dict[str, Any]:
        """Return everything under its name."""
        return {
            "load": {**vars(self.load), "dtype": str(self.load.dtype).removeprefix("torch.")},
            "parameters": self.parameters,
            "weights_bytes": self.weights,
            "cache_bytes": self.cache,
            "caption": {"phases": [vars(phase) for phase in self.captioning], "peak_bytes": self.caption_peak},
            "train": {"phases": [vars(phase) for phase in self.training], "peak_bytes": self.train_peak},
            "train_recomputed": {
                "phases": [vars(phase) for phase in self.recomputed],
                "peak_bytes": self.recomputed_peak,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How many images at a time a memory holds; 0 where it does not hold one."""

    gigabytes: int
    caption: int
    train: int
    recomputed: int


def config_of(reference: str, settings: Mapping[str, Any], hub: HubOptions) -> ModelConfig:
    """Return the config of a model; no weights are read.

    Raises:
        UsageError: there is no such preset, or settings are given for a model that keeps its own.
        ModelError: the checkpoint is missing or broken.
    """
    return referenced_preset(reference, settings) or open_reference(reference, hub).config


def load_of(config: ModelConfig, sizes: Mapping[str, int], dtype: str) -> Load:
    """Return the load that the command line's options name.

    `auto` dtype is float32; where no length of the text is given it is 30 tokens, or what there is room for.
    """
    fields = {_FIELDS[name]: size for name, size in sizes.items()}
    load = Load(dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype), **fields)
    if "new" in fields:
        return load
    return dataclasses.replace(load, new=max(min(load.new, _room(config, load)), 1))


def _room(config: ModelConfig, load: Load) -> int:
    """Return how many tokens can be written behind prompt and image; the last one is never read back."""
    size = load.image_size or config.vision.image_size
    spliced = config.placeholder_id is not None and config.prompt_encoder is None
    image = config.image_shape(size, size)[1] * load.tiles if spliced else 0
    return config.text.max_length + 1 - load.prompt - image


def plan(config: ModelConfig, load: Load) -> Plan:
    """Return what a model takes for a load.

    Raises:
        UsageError: the model cannot read such images, or such long a text.
    """
    _check(config, load)
    with torch.device("meta"):
        model = MultimodalTransformer(config)
    with FakeTensorMode():
        fill(model, load.dtype)
        return _planned(model, load)


def _planned(model: MultimodalTransformer, load: Load) -> Plan:
    weights = sum(tensor.nbytes for tensor in model.own_state().values())
    captioning, cache = caption_phases(model, load)
    size = sum(parameter.numel() for parameter in model.parameters())
    return Plan(
        load=load,
        parameters=size,
        weights=weights,
        captioning=tuple(captioning),
        cache=cache,
        training=tuple(train_phases(model, load)),
        recomputed=tuple(train_phases(recompute(model), load)),
        states=_states(model, size) + BATCHES_AHEAD * _images(model.config, load),
    )


def fits(config: ModelConfig, load: Load) -> list[Fit]:
    """Return how many images at a time memories of usual sizes hold, for a load in batches of any size.

    What a batch takes grows by the same bytes with each image, but for a part that all of it shares.
    """
    load = dataclasses.replace(load, batch=_FURTHER)
    first, second = plan(config, load), plan(config, dataclasses.replace(load, batch=2 * _FURTHER))
    return [
        Fit(
            gigabytes=gigabytes,
            caption=_batch_that_fits(gigabytes, load.batch, first.caption_peak, second.caption_peak),
            train=_batch_that_fits(gigabytes, load.batch, first.train_peak, second.train_peak),
            recomputed=_batch_that_fits(gigabytes, load.batch, first.recomputed_peak, second.recomputed_peak),
        )
        for gigabytes in MEMORIES
    ]


def _batch_that_fits(gigabytes: int, batch: int, taken: int, more: int) -> int:
    each = max((more - taken) / _FURTHER, 1)
    return max(min(math.floor((gigabytes * 10**9 - taken) / each) + batch, _MOST), 0)


def _check(config: ModelConfig, load: Load) -> None:
    """Raise UsageError for what the model cannot read."""
    size = load.image_size or config.vision.image_size
    config.image_shape(size, size)
    room = _room(config, load)
    if load.new > room:
        raise UsageError(
            f"the text is too long for the model ({load.prompt} + {load.new} tokens, room for {load.prompt} + "
            f"{max(room, 0)}); plan for a shorter one"
        )


def _states(model: MultimodalTransformer, parameters: int) -> int:
    """Return what training holds besides activations and the gradients that the dry run makes.

    Weights and AdamW's averages are float32. In half precision so are gradients, of which the dry run makes half, and
    each weight has a copy in half precision.
    """
    whole = parameters * _FLOAT32 * (1 + _ADAMW)
    own = sum(parameter.nbytes for parameter in model.parameters())
    return whole + (parameters * _FLOAT32 - own) + (own if own < parameters * _FLOAT32 else 0)


def _images(config: ModelConfig, load: Load) -> int:
    """Return the bytes of a batch's pixels, which are float32."""
    side = load.image_size or config.vision.image_size
    return load.batch * load.tiles * config.vision.channels * side**2 * _FLOAT32
