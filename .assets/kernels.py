"""Makes kernels.svg: time and peak memory of the four attention kernels against the number of image tokens.

python .assets/kernels.py measure        # runs `mmt bench` for each point, into kernels.json
python .assets/kernels.py draw           # needs the extra `plots`; prints where curves cross
"""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("kernels.json")
PICTURE = Path(__file__).with_name("kernels.svg")
SIDES = (7, 14, 20, 28, 40, 48, 64)  # patches of 16 pixels along the image's side
KERNELS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "sliding_window 7 x 7": {"kind": "sliding_window"},
    "linformer, rank 64": {"kind": "linformer"},
    "performer, 256 features": {"kind": "performer"},
}
COLOURS = ("#222222", "#1b7f4d", "#c2571a", "#3a5fc8")


def measure() -> None:
    """Time one picture through a tower of two blocks, and the memory of a training step, a process each."""
    found: dict[str, dict[str, list[float]]] = {}
    for side in SIDES:
        for name, kernel in KERNELS.items():
            settings = {"vision.image_size": 16 * side, "vision.num_layers": 2, "vision.block.kernel": kernel}
            seen = _bench(settings, "--gen-tokens", "1", "-r", "7")
            trained = _bench(settings, "--phase", "train", "-r", "2", "--warmup", "1", "--gen-tokens", "8")
            row = found.setdefault(name, {"tokens": [], "vision_ms": [], "train_peak_mb": []})
            row["tokens"].append(side * side)
            row["vision_ms"].append(next(p["median_ms"] for p in seen["phases"] if p["name"] == "vision"))
            row["train_peak_mb"].append(trained["summary"]["peak_memory_bytes"] / 1e6)
            print(side * side, name, row["vision_ms"][-1], row["train_peak_mb"][-1], flush=True)
    RESULTS.write_text(json.dumps({"machine": seen["machine"], "kernels": found}, indent=1) + "\n")


def _bench(settings: dict[str, Any], *more: str) -> dict[str, Any]:
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "mmt_cli", "bench", "preset:cross", *chosen, "--no-layers", "-q", "-f", "json"]
    done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def draw() -> None:
    """Draw both figures side by side, with the points where a kernel gets quicker than full attention."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mmt"  # the same picture from the same figures
    from matplotlib import pyplot

    results = json.loads(RESULTS.read_text())
    kernels = results["kernels"]
    figure, (time_axis, memory_axis) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for (name, row), colour in zip(kernels.items(), COLOURS, strict=True):
        for axis, key in ((time_axis, "vision_ms"), (memory_axis, "train_peak_mb")):
            axis.plot(row["tokens"], row[key], marker="o", markersize=4, color=colour, label=name)
        for tokens, level in crossings(kernels["full"], row):
            print(f"{name} crosses full attention at {tokens:.0f} tokens")
            time_axis.plot([tokens], [level], marker="x", markersize=9, color=colour)
            time_axis.annotate(
                f"{tokens:.0f}", (tokens, level), (6, -12), textcoords="offset points", color=colour, fontsize=9
            )
    time_axis.set(title="Time of the image tower, one picture", ylabel="ms", yscale="log")
    memory_axis.set(title="Peak memory of a training step, one picture", ylabel="MB", yscale="log")
    memory_axis.set_yticks([500, 1_000, 2_000, 4_000], ["500", "1,000", "2,000", "4,000"])
    for axis in (time_axis, memory_axis):
        axis.set(xlabel="image tokens", xscale="log")
        ticks = [49, 196, 400, 784, 1_600, 4_096]
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    time_axis.legend(frameon=False, fontsize=9)
    figure.savefig(PICTURE, metadata={"Date": None})


def crossings(full: dict[str, list[float]], other: dict[str, list[float]]) -> list[tuple[float, float]]:
    """Return where the two times meet, tokens and ms, on straight lines between points on logarithmic axes."""
    logs = [math.log(b / a) for a, b in zip(full["vision_ms"], other["vision_ms"], strict=True)]
    found = []
    for index, (left, right) in enumerate(itertools.pairwise(logs)):
        if left * right < 0:
            part = left / (left - right)
            tokens, times = ([math.log(v) for v in full[key][index : index + 2]] for key in ("tokens", "vision_ms"))
            found.append(tuple(math.exp(low + part * (high - low)) for low, high in (tokens, times)))
    return found


if __name__ == "__main__":
    {"measure": measure, "draw": draw}[sys.argv[1]]()
