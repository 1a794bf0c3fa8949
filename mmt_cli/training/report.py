"""The lines of `metrics.jsonl` sent to a service that draws them, where the user has one."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from mmt_cli.errors import UsageError
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.state import identity

_WANDB_ID = ".wandb-id"  # in the run's folder: what the service knows the run by


class Report(Protocol):
    """Where a run's figures go besides the disk."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take one line of `metrics.jsonl`."""

    def close(self) -> None:
        """Send what is left."""


@contextmanager
def open_report(options: TrainOptions, step: int) -> Iterator[Report]:
    """Open what `--report-to` names.

    Args:
        options: of the run.
        step: what a run that goes on has done.

    Raises:
        UsageError: the package is not installed.
    """
    report = _REPORTS[options.report_to](options, step)
    try:
        yield report
    finally:
        report.close()


class _Nowhere:
    def __init__(self, options: TrainOptions, step: int) -> None:
        pass

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, options: TrainOptions, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing(options) from error
        self.writer: Any = SummaryWriter(str(options.out / "tensorboard"), purge_step=step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _figures(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases, named like the run's folder; where training goes on, the same run does."""

    def __init__(self, options: TrainOptions, step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing(options) from error
        told = options.out / _WANDB_ID
        if not step or not told.exists():
            told.write_text(secrets.token_hex(4), encoding="utf-8")
        run = {"project": "mmt", "name": options.out.resolve().name, "id": told.read_text(encoding="utf-8")}
        self.run: Any = wandb.init(**run, resume="allow", dir=str(options.out), config=identity(options))

    def log(self, record: Mapping[str, Any]) -> None:
        self.run.log(_figures(record), step=record["step"])

    def close(self) -> None:
        self.run.finish()


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{record['kind']}/{name}": v for name, v in record.items() if isinstance(v, float | int) and name != "step"
    }


def _missing(options: TrainOptions) -> UsageError:
    name = options.report_to
    return UsageError(f"{name} is not installed (--report-to {name}); pip install 'mmt-cli[{name}]'")


_REPORTS: Mapping[str, Callable[[TrainOptions, int], Report]] = {
    "none": _Nowhere,
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
}
