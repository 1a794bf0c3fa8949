"""A moving average of the weights, which is often better than where they stand (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The average of trained parameters; batch statistics are averages already and stay what they are."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights as they are after a step, counted from 1.

        The first steps count for more, or the average would long remember the random start: the decay is at most
        `(1 + step) / (10 + step)`, as in TensorFlow's ExponentialMovingAverage.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [parameter.detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the average for its weights, and afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
