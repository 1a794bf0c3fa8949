"""`curves.png`: how loss and scores went, drawn from `metrics.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "curves.png"
_SIZE = (7.0, 4.5)  # inches


def draw_curves(metrics: Path) -> bool:
    """Write `curves.png` beside the metrics; False where matplotlib is not installed.

    The loss stands on the left axis, the figure that the best checkpoint is chosen by on the right.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which may look for a display
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats)")
    train = [line for line in lines if line["kind"] == "train"]
    axes.plot(*_points(train, "loss"), color="tab:blue", label="loss")
    scores = [line for line in lines if line["kind"] == "eval"]
    name = next((name for name in ("cider", "perplexity", "accuracy") if scores and name in scores[0]), None)
    if name is not None:
        right = axes.twinx()
        right.set_ylabel(f"validation {name}")
        right.plot(*_points(scores, name), color="tab:orange", marker="o", label=name)
    temporary = metrics.with_name(f".{FILE}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(metrics.with_name(FILE))
    return True


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]
