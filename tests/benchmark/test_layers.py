import pytest
import torch
from torch import nn

from mmt_cli.benchmark.layers import Stopwatch, WallClock, clock_for, hook_cost, layers_of


class Ticks:
    """A meter that goes one on at each look, so that what is measured counts the looks."""

    def __init__(self):
        self.now = 0
        self.settled = 0

    def mark(self):
        self.now += 1
        return self.now

    def between(self, start, end):
        return end - start

    def settle(self):
        self.settled += 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.nothing = nn.Dropout()
        self.stack = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())])

    def forward(self, x):
        x = self.nothing(self.first(x))
        for layer in self.stack:
            x = layer(x)
        return x


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_layers_are_what_lists_hold_and_what_stands_beside_them():
    assert list(layers_of(Net())) == ["first", "stack.0", "stack.1"]


def test_layers_cover_every_weight_but_bare_tables(model):
    layers = layers_of(model)
    covered = [id(weight) for layer in layers.values() for weight in layer.parameters()]
    bare = {name for name, weight in model.named_parameters() if id(weight) not in covered}
    assert {name.split(".")[-1] for name in bare} <= {"positions", "class_token"}
    assert [name for name in layers if name.startswith("blocks.")] == [f"blocks.{i}" for i in range(len(model.blocks))]
    assert list(layers)[-1] == "head"


def test_sample_has_the_whole_and_each_layer():
    watch, net = Stopwatch(Ticks()), Net()
    with watch.watching(net):
        for _ in range(2):
            with watch.phase("run"):
                net(torch.zeros(1, 2))
                net.first(torch.zeros(1, 2))
    assert [sample.layers for sample in watch.samples["run"]] == [{"first": [1, 1], "stack.0": [1], "stack.1": [1]}] * 2
    assert [sample.total for sample in watch.samples["run"]] == [9, 9]  # four layers, two looks each, and the end


def test_inner_phase_is_a_part_of_the_outer_one():
    watch = Stopwatch(Ticks())
    net = Net()
    with watch.watching(net), watch.phase("outer"):
        net.first(torch.zeros(1, 2))
        for _ in range(2):
            with watch.phase("inner"):
                net.stack[0](torch.zeros(1, 2))
    assert [(sample.layers, sample.hooked) for sample in watch.samples["outer"]] == [
        ({"first": [1], "inner": [3, 3]}, 1)
    ]
    assert [(sample.layers, sample.hooked) for sample in watch.samples["inner"]] == [({"stack.0": [1]}, 1)] * 2


def test_calls_of_a_module_are_phases_and_its_layers_lie_in_them():
    watch, net = Stopwatch(Ticks()), Net()
    with watch.watching(net), watch.phase("outer"), watch.phase_of(net, "net"), watch.phase_of(net.first, "first"):
        net(torch.zeros(1, 2))
    assert [list(sample.layers) for sample in watch.samples["outer"]] == [["net"]]
    assert [list(sample.layers) for sample in watch.samples["net"]] == [["first", "stack.0", "stack.1"]]
    assert hook_count(net) == 0


def test_stretch_goes_across_phases_and_is_a_part_of_none():
    watch = Stopwatch(Ticks())
    with watch.phase("outer"):
        end = watch.stretch("across")
        with watch.phase("inner"):
            pass
        end()
    assert [sample.total for sample in watch.samples["across"]] == [3]
    assert [list(sample.layers) for sample in watch.samples["outer"]] == [["inner"]]


def test_hooks_cost_the_two_marks_that_they_make():
    watch = Stopwatch(Ticks())
    assert hook_cost(watch) == 2


def test_device_has_settled_before_a_phase_starts_and_before_it_is_read():
    watch = Stopwatch(Ticks())
    with watch.phase("run"):
        assert watch.meter.settled == 1
    assert watch.meter.settled == 2


def test_hooks_are_gone_afterwards():
    watch, net = Stopwatch(Ticks()), Net()
    with watch.watching(net):
        assert hook_count(net) == 6
    assert hook_count(net) == 0
    with pytest.raises(RuntimeError), watch.watching(net):
        net(torch.zeros(1, 3))
    assert hook_count(net) == 0


def test_wall_clock_waits_for_the_device_and_counts_milliseconds():
    waits = []
    clock = WallClock(lambda: waits.append(1))
    start = clock.mark()
    assert len(waits) == 1
    assert clock.between(start, start + 0.25) == pytest.approx(250)


def test_processor_is_timed_by_its_own_clock():
    assert isinstance(clock_for(torch.device("cpu")), WallClock)
