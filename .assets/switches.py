"""The README's table of switches: what each costs and what it does to captions, through the commands everybody has.

    python .assets/switches.py cost                                  # parameters, FLOPs, memory, time of a step
    python .assets/switches.py quality FLICKR8K LITE0 --jobs 2       # dev CIDEr after a small training budget
    python .assets/switches.py image                                 # kernels and image side: error, memory, time
    python .assets/switches.py table                                 # the tables, from switches.json

FLICKR8K is a folder with train-*.tar and dev-000.tar, LITE0 the file of EfficientNet-Lite0's weights (weights.md).
Results are kept in switches.json; what is there is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("switches.json")
SEEDS = (0, 1, 2)
ROUNDS = 1  # of cost measurements, base and switch in turn

_BLOCK = {"width": 128, "num_heads": 4, "mlp_width": 512, "dropout": 0.0}
DECODER = {
    **{f"{part}.block.{key}": value for part in ("connector", "text") for key, value in _BLOCK.items()},
    "text.num_layers": 3,
}
# The same 49 image tokens from one matrix: a convolutional tower would hide what the decoder costs.
PLAIN_TOWER = {"vision": {"kind": "patches", "patch_size": 32, "num_layers": 0, "block": _BLOCK}}
CONCAT = {"fusion.kind": "concat"}

# Each is compared with the row named after it: its settings come on top of that row's.
SWITCHES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "base: cross-attention in every block": (None, {}),
    "cross-attention in every other block": ("base", {"fusion.every": 2}),
    "cross-attention behind a tanh gate": ("base", {"fusion.gate": "tanh"}),
    "cross-attention behind a dynamic gate": ("base", {"fusion.gate": "dynamic"}),
    "gated cross-attention and MLP (Flamingo)": ("base", {"fusion.kind": "gated_cross"}),
    "post-norm": ("base", {"text.block.norm": "post"}),
    "sandwich norm": ("base", {"text.block.norm": "sandwich"}),
    "RMSNorm": ("base", {"text.block.norm_kind": "rmsnorm"}),
    "ReLU": ("base", {"text.block.activation": "relu"}),
    "SwiGLU": (
        "base",
        {"text.block.activation": "silu", "text.block.gated": True, "text.block.mlp_width": 341},
    ),
    "no biases": (
        "base",
        {"text.block.qkv_bias": False, "text.block.out_bias": False, "text.block.mlp_bias": False},
    ),
    "one key/value head for four": ("base", {"text.block.num_kv_heads": 1}),
    "qk-norm": ("base", {"text.block.qk_norm": True}),
    "layer scale": ("base", {"text.block.layer_scale": 0.1}),
    "rotary positions": ("base", {"text.block.rope": "1d", "text.positions": "none"}),
    "own head": ("base", {"text.head": "own"}),
    "int8 cache": ("base", {"text.cache": "int8"}),
    "concat: image, then text, prefix mask": ("base", CONCAT),
    "concat, causal image": ("concat", {"fusion.visibility": "causal"}),
    "splice at placeholders": ("concat", {"fusion.kind": "splice", "text.max_length": 112}),
    "concat behind tanh gates": ("concat", {"fusion.gate": "tanh"}),
    "concat behind dynamic gates": ("concat", {"fusion.gate": "dynamic"}),
    "experts: MLP": ("concat", {"text.block.experts": "mlp"}),
    "experts: attention and MLP": ("concat", {"text.block.experts": "attention+mlp"}),
    "rotary positions, 1-D": ("concat", {"text.block.rope": "1d", "text.positions": "none"}),
    "rotary positions, multimodal": ("concat", {"text.block.rope": "multimodal", "text.positions": "none"}),
}
WITHOUT_QUALITY = ("int8 cache",)  # the same weights

_TOWER_BLOCK = {"width": 192, "num_heads": 4, "mlp_width": 768}
TOWER = {
    **{f"{part}.block.{key}": value for part in ("vision", "text") for key, value in _TOWER_BLOCK.items()},
    "text.num_layers": 1,
    "vision.patch_size": 8,
}
# Over a tower of six blocks on 28 x 28 patches, with the tower's own weights.
IMAGE_SIDE: dict[str, dict[str, Any]] = {
    "base: full attention, learned positions": {},
    "patches by convolution": {"vision.embedding": "convolution"},
    "positions: learned 2-D": {"vision.positions": "learned_2d"},
    "positions: 2-D sines": {"vision.positions": "sincos_2d"},
    "positions: rotary 2-D": {"vision.positions": "none", "vision.block.rope": "2d"},
    "sliding window 7 x 7": {"vision.block.kernel": {"kind": "sliding_window"}},
    "sliding window 15 x 15": {"vision.block.kernel": {"kind": "sliding_window", "image_window": 15}},
    "linformer, rank 64": {"vision.block.kernel": {"kind": "linformer"}},
    "performer, 256 features": {"vision.block.kernel": {"kind": "performer"}},
    "performer, 1,024 features": {"vision.block.kernel": {"kind": "performer", "features": 1_024}},
    "merging 64 tokens a block": {"vision.merged_tokens": 64},
    "average pooling 2 x 2": {"connector": {"block": _TOWER_BLOCK, "reduction": "average"}},
    "pixel shuffle 2 x 2": {"connector": {"block": _TOWER_BLOCK, "reduction": "pixel_shuffle"}},
}


def settings_of(name: str) -> dict[str, Any]:
    """Return a row's settings over its base's."""
    base, changes = SWITCHES[name]
    above = {} if base is None else settings_of(next(row for row in SWITCHES if row.startswith(base)))
    return {**above, **changes}


def mmt(*arguments: str) -> str:
    """Return what the command prints."""
    command = [sys.executable, "-m", "mmt_cli", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def options(settings: dict[str, Any]) -> list[str]:
    """Return settings as `--set` options."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def bench(preset: str, settings: dict[str, Any], *more: str) -> dict[str, Any]:
    """Return one report of `mmt bench`."""
    given = [f"preset:{preset}", *options(settings), "--cold-starts", "0", "-q", "-f", "json"]
    report: dict[str, Any] = json.loads(mmt("bench", *given, *more))
    return report


def median_of(report: dict[str, Any], phase: str) -> float:
    """Return the milliseconds of a phase."""
    return next(row["median_ms"] for row in report["phases"] if row["name"] == phase)


def cost() -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each switch beside its base, in turn."""
    for name, (base, _) in SWITCHES.items():
        base_name = name if base is None else next(row for row in SWITCHES if row.startswith(base))
        ratios: dict[str, list[float]] = {"train": [], "decode": [], "memory": []}
        for _ in range(ROUNDS):
            reports = []
            for row in (base_name, name):
                settings = DECODER | PLAIN_TOWER | settings_of(row)
                train = bench("mini", settings, "--phase", "train", "-b", "32", "-r", "9", "--gen-tokens", "12")
                caption = bench("mini", settings, "-b", "32", "-r", "9", "--gen-tokens", "16")
                reports.append((train, caption))
            (train, caption), (its_train, its_caption) = reports
            ratios["train"].append(median_of(its_train, "train") / median_of(train, "train"))
            ratios["decode"].append(median_of(its_caption, "decode") / median_of(caption, "decode"))
            peaks = [report["summary"]["peak_memory_bytes"] for report in (its_train, train)]
            ratios["memory"].append(peaks[0] / peaks[1])
        yield (
            name,
            {
                "parameters": its_train["summary"]["parameters"],
                "flops": its_train["summary"]["flops"],
                **{key: statistics.median(values) for key, values in ratios.items()},
            },
        )


def quality(data: Path, tower: Path, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train each switch with each seed, and score it on the dev photos."""
    known = read().get("quality", {})
    names = [name for name in SWITCHES if name not in WITHOUT_QUALITY]
    runs = [(name, seed) for seed in SEEDS for name in names if str(seed) not in known.get(name, {})]

    def run(name: str, seed: int) -> tuple[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            given = ["train", *map(str, sorted(data.glob("train-*.tar"))), "--val", str(data / "dev-000.tar")]
            start = ["--preset", "mini", *options(DECODER | settings_of(name)), "--vision-init", str(tower)]
            recipe = ["--freeze", "vision", "--cache-features", "--steps", "400", "-b", "16", "--lr", "2e-3"]
            recipe += ["--warmup", "40", "--eval-every", "400", "--precision", "bfloat16", "--seed", str(seed)]
            mmt(*given, *start, *recipe, "--threads", "1", "-q", "--out", folder)
            lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        last = {line["kind"]: line for line in lines}
        return name, {str(seed): {"cider": last["eval"]["cider"], "loss": last["train"]["loss"]}}

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda job: run(*job), runs)


def image_side() -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each switch of the image's side beside the base, in turn."""
    for name, changes in IMAGE_SIDE.items():
        times, peaks = [], []
        for _ in range(ROUNDS):
            base, its = (
                bench("cross", TOWER | more, "-b", "4", "-r", "5", "--gen-tokens", "2") for more in ({}, changes)
            )
            visions = [median_of(r, "vision") + median_of(r, "connector") for r in (its, base)]
            times.append(visions[0] / visions[1])
            peaks.append(its["summary"]["peak_memory_bytes"] / base["summary"]["peak_memory_bytes"])
        vision_flops = sum(row["flops"] or 0 for row in its["layers"] if row["phase"] in ("vision", "connector"))
        yield (
            name,
            {
                "parameters": its["summary"]["parameters"],
                "flops": vision_flops,
                "time": statistics.median(times),
                "memory": statistics.median(peaks),
                "error": kernel_error(changes),
            },
        )


def kernel_error(changes: dict[str, Any]) -> float | None:
    """Return the relative L2 error of the tower's tokens against full attention, for switches that estimate it."""
    if "vision.block.kernel" not in changes:
        return None
    import torch

    from mmt_cli.model.presets import preset
    from mmt_cli.model.transformer import MultimodalTransformer, initialise

    torch.manual_seed(0)
    full = MultimodalTransformer(preset("cross", TOWER))
    initialise(full)
    estimate = MultimodalTransformer(preset("cross", TOWER | changes))
    estimate.load_state_dict(full.state_dict(), strict=False)
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        exact, found = (model.eval().see(pixels).x_BND for model in (full, estimate))
    return float((found - exact).norm() / exact.norm())


def read() -> dict[str, Any]:
    """Return the results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(kind: str, rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """Write each result as it comes."""
    for name, found in rows:
        results = read()
        results.setdefault(kind, {}).setdefault(name, {}).update(found)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(kind, name, found, flush=True)


def tables() -> None:
    """Print the README's tables."""
    results = read()
    costs, runs = results["cost"], results.get("quality", {})
    print("| switch | against | parameters | FLOPs | memory | step | word | dev CIDEr | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (base, _) in SWITCHES.items():
        row, its = costs[name], scores(runs, name)
        other = [] if base is None else scores(runs, next(row for row in SWITCHES if row.startswith(base)))
        ratios = ["1"] * 3 if base is None else [f"{row[key]:.2f}" for key in ("memory", "train", "decode")]
        cells = [name, base or "", f"{row['parameters'] / 1e6:.2f} M", f"{row['flops'] / 1e9:.1f} G", *ratios]
        print("| " + " | ".join([*cells, spread(its), verdict(its, other)]) + " |")
    print("\n| switch | parameters | FLOPs | error | memory | time |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in results.get("image", {}).items():
        error = "" if row["error"] is None else f"{row['error']:.3f}"
        cells = [name, f"{row['parameters'] / 1e6:.2f} M", f"{row['flops'] / 1e9:.1f} G", error]
        print("| " + " | ".join([*cells, f"{row['memory']:.2f}", f"{row['time']:.2f}"]) + " |")


def scores(runs: dict[str, Any], name: str) -> list[float]:
    """Return the CIDEr of each seed."""
    return [run["cider"] for run in runs.get(name, {}).values()]


def spread(values: list[float]) -> str:
    """Return mean and range, where every seed has run."""
    if len(values) < len(SEEDS):
        return ""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def verdict(its: list[float], base: list[float]) -> str:
    """Say what the seeds say: a difference only where no run of one is among those of the other."""
    if min(len(its), len(base)) < len(SEEDS):
        return ""
    if min(its) > max(base):
        return "helps"
    return "hurts" if max(its) < min(base) else "no difference"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "quality", "image", "table"))
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("tower", nargs="?", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if given.what == "cost":
        keep("cost", cost())
    elif given.what == "quality":
        keep("quality", quality(given.data, given.tower, given.jobs))
    elif given.what == "image":
        keep("image", image_side())
    else:
        tables()


if __name__ == "__main__":
    main()
