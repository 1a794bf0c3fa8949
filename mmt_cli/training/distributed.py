"""The processes that train one model together: who this one is, and what they tell each other.

torchrun starts a team of them, on one machine or many. Any other process trains alone, and nothing here costs it
anything.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mmt_cli.errors import PeerLostError, ToldElsewhereError, UsageError
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import mixed_seed

T = TypeVar("T")
# Others wait while the leader scores, or a tower goes through a data set; a process that is gone is seen at once.
_PATIENCE = timedelta(days=1)


class World:
    """A process that trains alone: what a team has to agree on, it decides itself."""

    rank = 0  # among all processes
    size = 1
    place = 0  # among those of this machine

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each value."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in any process."""
        return flag

    def each(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks."""
        return [value]

    def of_leader(self, work: Callable[[], T]) -> T:
        """Return in every process what `work` gives in the leader, where alone it runs."""
        return work()

    def meet(self) -> None:
        """Wait until all processes have come here."""

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Let floating-point tensors be their means over all processes, in place."""

    def reseed(self, generator: torch.Generator, seed: int, step: int) -> None:
        """Draw the random numbers of a step from what these numbers give.

        Only in a team: so no process's state has to be kept for a run to go on, at whatever number of processes. A
        process alone goes on with the state that its checkpoint keeps.
        """


class Team(World):
    """One of several processes. What is asked of it here, all are asked, in the same order."""

    def __init__(self, store: Store) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.place = _place()
        self.store = store
        self.words = dist.new_group(backend="gloo", timeout=_PATIENCE)  # for numbers and words, which no GPU waits for

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each value."""
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.words)
        found: list[float] = summed.tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in any process."""
        return self.total([flag])[0] > 0

    def each(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks."""
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self.words)
        return values

    def of_leader(self, work: Callable[[], T]) -> T:
        """Return in every process what `work` gives in the leader, where alone it runs."""
        told = [work() if self.leads else None]
        dist.broadcast_object_list(told, src=0, group=self.words)
        return told[0]  # type: ignore[return-value]

    def meet(self) -> None:
        """Wait until all processes have come here."""
        dist.barrier(group=self.words)

    def part(self) -> None:
        """Give the others up, once all have come here."""
        self.meet()
        del self.words  # a thread of it that frees a tensor while Python ends would abort the process
        dist.destroy_process_group()

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Let floating-point tensors be their means over all processes, in place."""
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        means = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def reseed(self, generator: torch.Generator, seed: int, step: int) -> None:
        """Draw the random numbers of a step from what these numbers and the rank give."""
        mixed = mixed_seed(seed, step, self.rank)
        torch.manual_seed(mixed)
        generator.manual_seed(mixed)

    def ending(self, error: BaseException) -> BaseException:
        """Return what this process ends with: the first one to end tells why, the others end in silence."""
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        name = str(self.rank)
        try:
            tells = self.store.compare_set("ended", "", name) == name.encode()
        except RuntimeError:  # whoever kept the store is gone too: rather told twice than not at all
            tells = True
        if not tells:
            return ToldElsewhereError(error)
        if lost:
            return PeerLostError(
                f"another process of this run is gone (seen by process {self.rank} of {self.size}); "
                "start all of them again with --resume auto"
            )
        return error


@contextmanager
def joined(options: TrainOptions) -> Iterator[tuple[World, TrainOptions]]:
    """Find the other processes of a run that torchrun has started; give them up at the end.

    Yields:
        the team, and the options as they are for this process: its device, and how many processes there are.

    Raises:
        UsageError: `--parallel` for one process, or a device that a team cannot use.
        ToldElsewhereError: the run ends for a reason that another process tells.
    """
    if not dist.is_torchelastic_launched():
        if options.parallel is not None:
            raise UsageError(
                f"one process has nothing to share (--parallel {options.parallel}, not started by torchrun); "
                "use torchrun --nproc-per-node N -m mmt_cli train …, or leave it out"
            )
        yield World(), options
        return
    device = _device(options)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=PrefixStore("mmt", store), rank=rank, world_size=size
    )
    team = Team(store)
    try:
        yield team, dataclasses.replace(options, device=str(device), processes=size, parallel=options.parallel or "ddp")
        team.part()
    except BaseException as error:
        ending = team.ending(error)
        if ending is error:
            raise
        raise ending from error


def _device(options: TrainOptions) -> torch.device:
    """Return this process's device: the GPU of its place on the machine, or the CPU, which all share."""
    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"one device for several processes (--device {options.device}, started by torchrun); use cpu, cuda or auto"
        )
    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", _place())


def _place() -> int:
    return int(os.environ["LOCAL_RANK"])
