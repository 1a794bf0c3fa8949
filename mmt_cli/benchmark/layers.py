"""Measuring phases and, by forward hooks, the layers inside them: time here, work in `work.py`."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Mark = TypeVar("Mark")
Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
MILLISECONDS = 1000
_HOOK_CALLS, _HOOK_ROUNDS = 100, 5


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
    """One run of a phase.

    Attributes:
        total: the whole of it.
        layers: of each layer one value a call, in the order of first calls.
        hooked: how many of these calls were measured by hooks.
    """

    total: Value
    layers: dict[str, list[Value]]
    hooked: int = 0


class Stopwatch(Generic[Mark, Value]):
    """Collects a sample each time a phase is run; a phase inside another counts as a layer of that one."""

    def __init__(self, meter: Meter[Mark, Value]) -> None:
        self.meter = meter
        self.samples: dict[str, list[Sample[Value]]] = {}
        self._spans: list[tuple[str, Mark, Mark]] = []  # of the phase that is open: layer, start, end
        self._hooked = 0  # of these spans

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one run of a phase."""
        outer, self._spans, self._hooked = (self._spans, self._hooked), [], 0
        self.meter.settle()
        start = self.meter.mark()
        yield
        end = self.meter.mark()
        self.meter.settle()
        layers: dict[str, list[Value]] = {}
        for layer, first, last in self._spans:
            layers.setdefault(layer, []).append(self.meter.between(first, last))
        total = self.meter.between(start, end)
        self.samples.setdefault(name, []).append(Sample(total=total, layers=layers, hooked=self._hooked))
        (spans, self._hooked) = outer
        self._spans = [*spans, (name, start, end)]

    @contextmanager
    def phase_of(self, module: nn.Module, name: str) -> Iterator[None]:
        """Measure each call of a module inside as one run of a phase, its other hooks' work included."""
        running: list[AbstractContextManager[None]] = []

        def begin(*_: object) -> None:
            running.append(self.phase(name))
            running[-1].__enter__()

        def end(*_: object) -> None:
            running.pop().__exit__(None, None, None)

        handles = [module.register_forward_pre_hook(begin, prepend=True), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stretch(self, name: str) -> Callable[[], None]:
        """Start a measurement across phases, which is a part of none; the function that is returned ends it."""
        self.meter.settle()
        start = self.meter.mark()

        def end() -> None:
            last = self.meter.mark()
            self.meter.settle()
            self.samples.setdefault(name, []).append(Sample(total=self.meter.between(start, last), layers={}))

        return end

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Measure every layer of the model that runs inside; its hooks are gone afterwards."""
        handles = [handle for name, module in layers_of(model).items() for handle in self.hook(module, name)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
        """Measure each call of a module as a layer of the phase that is open, until the hooks are removed."""
        starts: list[Mark] = []
        begin, end = partial(self._begin, starts), partial(self._end, name, starts)
        return module.register_forward_pre_hook(begin), module.register_forward_hook(end)

    def _begin(self, starts: list[Mark], *_: object) -> None:
        starts.append(self.meter.mark())

    def _end(self, name: str, starts: list[Mark], *_: object) -> None:
        self._spans.append((name, starts.pop(), self.meter.mark()))
        self._hooked += 1


def hook_cost(watch: Stopwatch[Any, float]) -> float:
    """Return the milliseconds by which hooks make one call of a layer longer."""
    module = nn.Identity()

    def run() -> float:
        with watch.phase("hooks"):
            for _ in range(_HOOK_CALLS):
                module(None)
        return watch.samples["hooks"][-1].total

    bare = min(run() for _ in range(_HOOK_ROUNDS))
    handles = watch.hook(module, "layer")
    hooked = min(run() for _ in range(_HOOK_ROUNDS))
    for handle in handles:
        handle.remove()
    return max(0.0, hooked - bare) / _HOOK_CALLS


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
