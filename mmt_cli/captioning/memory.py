"""How much memory captioning takes, roughly, and how many images at a time fit into what is free.

An upper estimate, good for choosing a batch size; running out all the same halves the batch.
"""

import contextlib
import os
from pathlib import Path

import torch

from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.image_config import PatchTowerConfig

_LARGEST_BATCH = {"cpu": 16, "cuda": 64, "mps": 32}  # more brings nothing: measured on the CPU
_SHARE_OF_FREE = 0.5  # the rest is for images read ahead, for weights in other layouts, and for others
_CONV_MAPS = 80  # numbers that EfficientNet-Lite0's first maps hold for each pixel, three of them at once


def image_bytes(config: ModelConfig, how: Preprocessing, options: GenerationOptions, *, tiles: int, size: int) -> int:
    """Return bytes that one image takes at most while it is captioned.

    Args:
        config: the model.
        how: how its images are prepared.
        options: how it writes.
        tiles: images that stand for one picture.
        size: bytes of one number.
    """
    pixels = how.height * how.width
    samples = pixels * 3 * (1 + 8 / 8 + size)  # 8 bits, a passing share of float64, and as the model takes it
    grid = config.vision.grid_of(how.height, how.width)
    if isinstance(config.vision, PatchTowerConfig):
        tower = (grid[0] * grid[1] + config.vision.class_tokens) * _live(config.vision.block)
    else:
        tower = pixels * _CONV_MAPS
    tokens = tiles * config.image_shape(how.height, how.width)[1]
    rows = max(options.num_beams, options.num_captions)
    length = min(options.max_new_tokens, config.text.max_length) + (tokens if config.joint else 0)
    block, layers = config.text.block, config.text.num_layers
    seen = 0 if config.joint else tokens  # keys and values of the image, for each beam
    # Reordering beams copies the cache of one layer at a time.
    kept = 2 * block.kv_heads * block.head_width * rows * (length + seen) * (layers + 1)
    reading = tokens * (_live(block) if config.joint else 2 * config.memory_width)
    logits = rows * config.text.vocab_size * 4 * 4  # float32: logits, log-probabilities, scores, and one in passing
    return int(tiles * samples + (tiles * tower + kept + reading) * size + logits)


def _live(block: BlockConfig) -> int:
    """Return the numbers that one token takes inside a block: its input, norm, queries, keys, values, and the MLP."""
    attention = 3 * block.num_heads * block.head_width
    return 3 * block.width + max(attention + block.width, block.mlp_width * (3 if block.gated else 2))


def best_batch_size(per_image: int, device: torch.device) -> int:
    """Return how many images at a time make good use of a device and of half of what is free there."""
    largest = _LARGEST_BATCH.get(device.type, 1)
    free = free_memory(device)
    fitting = largest if free is None else int(free * _SHARE_OF_FREE / max(per_image, 1))
    return max(1, min(largest, fitting))


def free_memory(device: torch.device) -> int | None:
    """Return bytes that can still be taken on a device; None where that cannot be found out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [value for value in (_available(), _left_in_group()) if value is not None]
    return min(found, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _left_in_group() -> int | None:
    """Return what the control group that this process runs in (a container's) still allows."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        return None if limit == "max" else int(limit) - int((group / "memory.current").read_text(encoding="utf-8"))
    return None
