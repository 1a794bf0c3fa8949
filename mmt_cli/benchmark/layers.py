"""Measuring phases and, by forward hooks, the layers inside them: time here, work in `work.py`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

Mark = TypeVar("Mark")
Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
MILLISECONDS = 1000


class Meter(Protocol[Mark, Value_co]):
    """What a stopwatch reads."""

    def mark(self) -> Mark:
        """Return where the meter stands."""

    def between(self, start: Mark, end: Mark) -> Value_co:
        """Return what lies between two marks; both are settled."""

    def settle(self) -> None:
        """Wait until the device has done all it was given."""


class WallClock:
    """Milliseconds of the process's clock; a device that works beside the process is waited for at each mark."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.settle = wait

    def mark(self) -> float:
        """Return seconds of a clock that never goes back."""
        self.settle()
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        """Return milliseconds."""
        return (end - start) * MILLISECONDS


class EventClock:
    """Milliseconds between CUDA events: marks do not hold up the GPU, only `settle` does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """Return an event behind all work given to the GPU so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return milliseconds."""
        return float(start.elapsed_time(end))

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device) -> WallClock | EventClock:
    """Return the clock that is right for a model on `device`."""
    if device.type == "cuda":
        return EventClock(device)
    return WallClock(torch.mps.synchronize) if device.type == "mps" else WallClock()


@dataclass(frozen=True, kw_only=True)
class Sample(Generic[Value]):
    """One run of a phase: the whole of it, and of each layer one value a call, in the order of first calls."""

    total: Value
    layers: dict[str, list[Value]]


class Stopwatch(Generic[Mark, Value]):
    """Collects a sample each time a phase is run; a phase inside another counts as a layer of that one."""

    def __init__(self, meter: Meter[Mark, Value]) -> None:
        self.meter = meter
        self.samples: dict[str, list[Sample[Value]]] = {}
        self._spans: list[tuple[str, Mark, Mark]] = []  # of the phase that is open: layer, start, end

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one run of a phase."""
        outer, self._spans = self._spans, []
        self.meter.settle()
        start = self.meter.mark()
        yield
        end = self.meter.mark()
        self.meter.settle()
        layers: dict[str, list[Value]] = {}
        for layer, first, last in self._spans:
            layers.setdefault(layer, []).append(self.meter.between(first, last))
        self.samples.setdefault(name, []).append(Sample(total=self.meter.between(start, end), layers=layers))
        self._spans = [*outer, (name, start, end)]

    @contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """Measure a part of the open phase that is no module."""
        start = self.meter.mark()
        yield
        self._spans.append((name, start, self.meter.mark()))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Measure every layer of the model that runs inside; its hooks are gone afterwards."""
        handles = []
        for name, module in layers_of(model).items():
            starts: list[Mark] = []
            handles.append(module.register_forward_pre_hook(partial(self._begin, starts)))
            handles.append(module.register_forward_hook(partial(self._end, name, starts)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, starts: list[Mark], *_: object) -> None:
        starts.append(self.meter.mark())

    def _end(self, name: str, starts: list[Mark], *_: object) -> None:
        self._spans.append((name, starts.pop(), self.meter.mark()))


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return what a table of layers shows, by name, in the order of the data's flow.

    Whatever holds a list of layers is looked into; anything else with parameters (a block, a norm) is one layer.
    """
    found: dict[str, nn.Module] = {}

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            if any(isinstance(part, nn.ModuleList) for part in child.modules()):
                visit(f"{prefix}{name}.", child)
            elif any(True for _ in child.parameters()):
                found[prefix + name] = child

    visit("", model)
    return found
