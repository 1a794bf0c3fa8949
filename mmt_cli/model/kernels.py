"""The attention kernels by name. What each supports, its docstring says and its config declares."""

from mmt_cli.model.block_config import (
    BlockConfig,
    FullKernelConfig,
    LinformerKernelConfig,
    PerformerKernelConfig,
    SlidingWindowKernelConfig,
)
from mmt_cli.model.kernel_full import FullAttention, Kernel, MemoryAttention, full_attention
from mmt_cli.model.kernel_linformer import Linformer
from mmt_cli.model.kernel_performer import Performer
from mmt_cli.model.kernel_window import SlidingWindow
from mmt_cli.model.mask import Window

__all__ = [
    "FullAttention",
    "Kernel",
    "Linformer",
    "MemoryAttention",
    "Performer",
    "SlidingWindow",
    "build_kernel",
    "full_attention",
]


def build_kernel(config: BlockConfig, *, num_tokens: int | None) -> Kernel:
    """Return the kernel that the config names.

    Args:
        config: of the block that the kernel serves.
        num_tokens: how many tokens it always reads, for a kernel of one length; None where that varies.
    """
    match config.kernel:
        case FullKernelConfig():
            # Keys of rotary decoders have biases, and sinks, that can give scores of hundreds (Qwen2).
            return FullAttention(large_scores=config.rope != "none")
        case SlidingWindowKernelConfig(image_window=image, text_window=text):
            return SlidingWindow(Window(image=image, text=text))
        case LinformerKernelConfig(rank=rank):
            assert num_tokens is not None, "linformer without a length"
            return Linformer(rank=rank, num_tokens=num_tokens)
        case PerformerKernelConfig(features=features):
            return Performer(head_width=config.head_width, features=features)
