"""`curves.png`: how loss and scores went, drawn from `metrics.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.training.evaluate import TITLES

FILE = "curves.png"
_SIZE = (7.0, 4.5)  # inches
_FEW = 50  # losses that are marked one by one
_LOSS, _SCORE = "tab:blue", "tab:orange"  # lines, and the names of their axes


def draw_curves(metrics: Path) -> bool:
    """Write `curves.png` beside the metrics; False where matplotlib is not installed.

    The loss stands on the left axis, the figure that the best checkpoint is chosen by on the right, with its interval
    where it has one.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which may look for a display
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats)", color=_LOSS)
    train = [line for line in lines if line["kind"] == "train"]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(*_points(train, "loss"), color=_LOSS, marker="." if len(train) < _FEW else None)
    scores = [line for line in lines if line["kind"] == "eval"]
    name = next((name for name in ("cider", "perplexity", "accuracy") if scores and name in scores[0]), None)
    if name is not None:
        right = axes.twinx()
        right.set_ylabel(f"validation {TITLES.get(name, name)}", color=_SCORE)
        right.plot(*_points(scores, name), color=_SCORE, marker="o")
        ends = [(line["step"], *line["intervals"][name]) for line in scores if name in line.get("intervals", {})]
        if ends:
            steps, low, high = zip(*ends, strict=True)
            right.fill_between(steps, low, high, color=_SCORE, alpha=0.2, linewidth=0)
    temporary = metrics.with_name(f".{FILE}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(metrics.with_name(FILE))
    return True


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]
