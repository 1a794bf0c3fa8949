"""What the machine is called, what state it is in, and how much memory was used on it."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mmt_cli import __version__

_KIBIBYTE = 1024
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GPU_STATE = ("clocks.sm", "clocks.max.sm", "clocks.mem", "pstate", "temperature.gpu", "driver_version")
_SECONDS = 10  # that nvidia-smi may take


def describe_machine(device: torch.device, dtype: torch.dtype, quantize: str | None = None) -> dict[str, Any]:
    """Return what figures depend on: processor, cores, GPU, clocks, threads, dtype, versions."""
    others = str(dtype).removeprefix("torch.")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": str(device),
        "dtype": others if quantize is None else f"{quantize} and {others}",
        "threads": torch.get_num_threads(),
        "mmt": __version__,
        "torch": torch.__version__,
        "transformers": _installed("transformers"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "clocks": _clocks(),
        "gpu_state": _gpu_state(device) if device.type == "cuda" else None,
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    names = _cpu_info("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_info(key: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _clocks() -> dict[str, Any]:
    """Return the processor's clocks in MHz and who sets them; None for what the system does not tell."""
    now = [float(text) for text in _cpu_info("cpu MHz")]
    most = _line(_FREQUENCY / "cpuinfo_max_freq")
    return {
        "governor": _line(_FREQUENCY / "scaling_governor"),
        "mhz": max(now, default=None),
        "max_mhz": int(most) / 1000 if most and most.isdecimal() else None,
    }


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _gpu_state(device: torch.device) -> dict[str, str] | None:
    """Return what the driver says of a GPU's clocks; None where its tool is not at hand."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index or 0))
    name = uuid if uuid.isdecimal() else f"GPU-{uuid}"
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={','.join(_GPU_STATE)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(_GPU_STATE, done.stdout.strip().split(", "), strict=False))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The most memory that was in use, in bytes.

    Attributes:
        process: the process's resident size, its libraries and weights included.
        allocator: what torch's allocator held on a GPU; None elsewhere, where it keeps no account.
    """

    process: int
    allocator: int | None

    @property
    def main(self) -> int:
        """The figure of the place where the model is."""
        return self.process if self.allocator is None else self.allocator


def reset_peak_memory(device: torch.device) -> None:
    """Start to look for new peaks, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _CLEAR_PEAK.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peaks since the reset; where the system cannot reset, the process's is that of its whole life."""
    allocator = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(process=_resident(), allocator=allocator)


def _resident() -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIBIBYTE
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * _KIBIBYTE
