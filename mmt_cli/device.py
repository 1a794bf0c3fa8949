"""Where a model runs and what it computes in: device, dtype, threads."""

import ctypes
import sys

import torch

from mmt_cli.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UsageError(f"unknown device (--device {name}); use auto, cpu, cuda, cuda:N or mps")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= available:
        raise UsageError(f"no such device here (--device {name}, {available} of kind {kind} found); use --device auto")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype | None = None) -> torch.dtype:
    """Return the dtype a model computes in.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`.
        device: where the model runs.
        stored: dtype of a foreign checkpoint's weights, kept on a GPU; ours run in bfloat16 there.

    Raises:
        UsageError: the name is unknown.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else stored or torch.bfloat16
    if name not in DTYPES:
        raise UsageError(f"unknown dtype (--dtype {name}); use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def set_threads(count: int | None) -> None:
    """Let torch use `count` threads on the CPU; None leaves torch's own choice.

    Raises:
        UsageError: fewer than one thread.
    """
    if count is None:
        return
    if count < 1:
        raise UsageError(f"too few threads (--threads {count}, at least 1); leave the option out for all cores")
    torch.set_num_threads(count)


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks for the next step instead of giving them back to the system.

    A batch of images frees and takes hundreds of megabytes, a training step gigabytes; taken anew, each page of them
    costs a fault: a fifth of the time of captioning on two cores. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
