"""What a run learns from, what it learns and what it is judged by: all in which objectives differ to the loop."""

from collections.abc import Callable

from mmt_cli.training.options import TrainOptions
from mmt_cli.training.tasks.base import Task
from mmt_cli.training.tasks.captions import CaptionTask, ContrastiveTask, SelfCriticalTask
from mmt_cli.training.tasks.language import LanguageTask
from mmt_cli.training.tasks.masked import MaskedTask

TASKS: dict[str, Callable[[TrainOptions], Task]] = {
    "caption": CaptionTask,
    "caption+contrastive": ContrastiveTask,
    "masked": MaskedTask,
    "language": LanguageTask,
    "scst": SelfCriticalTask,
}
