"""What every objective is to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.batches import Batch

Losses = dict[str, Tensor]  # scalars; "loss" is what is minimised, the others its parts where it has several
See = Callable[[Tensor], ImageTokens]  # images of a batch → what the text looks at


class Objective(nn.Module, ABC):
    """A model and what is learned with it; its parameters are the model's and those it adds for training alone."""

    def __init__(self, model: MultimodalTransformer) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return the losses of a batch; what is random is drawn from `generator`, which is the CPU's."""

    def weight(self, batch: Batch) -> float:
        """Return how many things the loss of a batch is the mean of: what it counts for among the batches of a step.

        Images or sentences, unless an objective knows better.
        """
        return len(batch.keys)
