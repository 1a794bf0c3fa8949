"""The phases of each case as a bar, drawn by matplotlib where it is installed."""

import importlib
from collections.abc import Callable
from pathlib import Path

from mmt_cli.benchmark.report import Report
from mmt_cli.errors import OutputError, UsageError

_KINDS = (".png", ".svg", ".pdf")
_INCHES_WIDE, _INCHES_A_BAR, _INCHES_MORE = 9.0, 0.5, 1.6


def chart(path: Path) -> Callable[[Report], None]:
    """Return what draws a report into a file.

    Raises:
        UsageError: the file has another ending, or matplotlib is not installed.
    """
    if path.suffix.lower() not in _KINDS:
        what = f"a chart of unknown kind (--save-chart {path}, known: {', '.join(_KINDS)})"
        raise UsageError(f"{what}; name a file of one of these")
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        what = f"matplotlib is not installed (--save-chart {path})"
        raise UsageError(f"{what}; pip install 'mmt-cli[plots]'") from error
    return lambda report: _draw(report, path)


def _draw(report: Report, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = _INCHES_MORE + _INCHES_A_BAR * len(report.results)
    figure = Figure(figsize=(_INCHES_WIDE, height), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which may look for a display
    axes = figure.subplots()
    names = list(dict.fromkeys(part.name for result in report.results for part in result.parts))
    cases = [result.summary.case for result in report.results]
    labels = [f"{case.model}\nbatch {case.batch_size}, {case.prompt_tokens} + {case.gen_tokens}" for case in cases]
    starts = [0.0] * len(cases)
    for name in names:
        widths = [
            sum(part.median_ms for part in result.parts if part.name == name) / result.summary.case.batch_size
            for result in report.results
        ]
        axes.barh(labels, widths, left=starts, label=name)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds an image")
    axes.legend(ncols=5, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.25))
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(f"the chart cannot be written ({path}: {error.strerror}); name another file") from error
