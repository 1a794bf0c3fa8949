"""How an objective runs: in one process, in several that each hold all of it, or in several that each hold a share."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mmt_cli.errors import UsageError
from mmt_cli.model.block import Block
from mmt_cli.training.batches import Batch
from mmt_cli.training.distributed import World
from mmt_cli.training.ema import Ema
from mmt_cli.training.objectives.base import Losses, Objective
from mmt_cli.training.options import TrainOptions


class Alone:
    """One process."""

    sharded = False  # whether parameters, moments and averages lie in shares

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return the losses of a batch."""
        losses: Losses = self.objective(batch, generator)
        return losses

    def batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Surround the passes of one batch; after the step's last one gradients are the means over all processes."""
        return nullcontext()

    def whole(self, ema: Ema | None) -> AbstractContextManager[None]:
        """Let the objective be one that any single process can run, with the average for weights if there is one."""
        return nullcontext() if ema is None else ema.swapped_in()


class Replicated(Alone):
    """Each process holds the whole model; gradients are averaged while the backward pass goes on (DDP).

    Looking for unused parameters lets an objective leave some of them out. It also keeps the order in which gradients
    are put together, which DDP would otherwise change after the first step: a run that goes on would then add up in
    another order than one that was never cut.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # an argument has a new name in torch 2.13
            self.module = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Return the losses of a batch."""
        losses: Losses = self.module(batch, generator)
        return losses

    def batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Surround the passes of one batch; after the step's last one gradients are the means over all processes."""
        return nullcontext() if last else self.module.no_sync()


class Sharded(Alone):
    """Each process holds a share of every parameter, its gradient and its moments (FSDP2, `fully_shard`).

    A block's parameters are put together as it runs. The model is whole for a moment: as it is built, and as it is
    scored and saved.
    """

    sharded = True

    def __init__(self, objective: Objective, device: torch.device) -> None:
        """Take this process's shares.

        Raises:
            UsageError: a parameter has none, being one number, such as the scale of a contrastive head.
        """
        for name, parameter in objective.named_parameters():
            if parameter.dim() == 0:
                raise UsageError(f"one number has no shares (--parallel fsdp, {name}); use --parallel ddp")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(objective)
        with torch.no_grad():
            for tensor in objective.state_dict().values():  # DDP does the same
                dist.broadcast(tensor, src=0)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in [module for module in objective.modules() if isinstance(module, Block)]:
            fully_shard(block, mesh=mesh)
        self.root: Any = fully_shard(objective, mesh=mesh)

    def batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Surround the passes of one batch; after the step's last one gradients are the means over all processes."""
        self.root.set_requires_gradient_sync(last)
        self.root.set_is_last_backward(last)
        return nullcontext()

    @contextmanager
    def whole(self, ema: Ema | None) -> Iterator[None]:
        """Let the objective be one that any single process can run, with the average for its weights if there is one.

        The shares stay where they are, beside whole parameters that lead nowhere.
        """
        averages = {} if ema is None else {ema.parameters[name]: average for name, average in ema.average.items()}
        modules = list(self.objective.modules())
        kept = [(m, dict(m._parameters), m._forward_pre_hooks, m._forward_hooks) for m in modules]
        full: dict[Tensor, nn.Parameter] = {}
        for module in modules:
            for name, shared in module._parameters.items():
                if shared is None:
                    continue
                if shared not in full:  # a tied one stands in several places
                    share = averages.get(shared, shared).detach()
                    full[shared] = nn.Parameter(full_tensor(share), requires_grad=shared.requires_grad)
                module._parameters[name] = full[shared]
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
        try:
            yield
        finally:
            for module, parameters, before, after in kept:
                module._parameters.clear()
                module._parameters.update(parameters)
                module._forward_pre_hooks, module._forward_hooks = before, after


def run_in(world: World, objective: Objective, options: TrainOptions, device: torch.device) -> Alone:
    """Return how the objective runs; where in shares, its parameters are others from here on."""
    if options.parallel is None:
        return Alone(objective)
    return Sharded(objective, device) if options.parallel == "fsdp" else Replicated(objective)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that lies in shares as a whole, in every process; any other as it is."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances that batches change."""
    changing = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    both = [tensor for module in changing for tensor in (module.running_mean, module.running_var)]
    return [tensor for tensor in both if tensor is not None]
