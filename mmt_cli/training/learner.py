"""All that changes while a model learns, and the one step that changes it."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmt_cli.device import DTYPES
from mmt_cli.errors import ModelError
from mmt_cli.training.batches import Batch
from mmt_cli.training.compiled import as_written, compile_blocks
from mmt_cli.training.distributed import World
from mmt_cli.training.ema import Ema
from mmt_cli.training.lora import DEFAULT_TARGETS, adapt, merged
from mmt_cli.training.memory import checkpoint_blocks
from mmt_cli.training.optim import build_optimizer, freeze, frozen_names, set_modes
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.parallel import batch_statistics, full_tensor, run_in
from mmt_cli.training.tasks.base import Task

_SMALLEST_SCALE = 1.0  # of a float16 loss: gradients that overflow at this one are no matter of scale


class NotFiniteError(Exception):
    """The loss or a gradient is NaN or infinite; nothing has been changed."""

    def __init__(self, loss: float, norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


class Learner:
    """Model, optimizer, moving average and random numbers of one run, or of one process's part in it."""

    def __init__(self, task: Task, options: TrainOptions, world: World) -> None:
        self.options = options
        self.world = world
        self.objective = task.objective
        self.model = model = task.captioner.model
        self.device = task.captioner.device
        frozen = frozen_names(options, task.untrained)
        if options.lora is None:
            freeze(model, frozen)
        else:
            adapt(model, options.lora, options.lora_targets or DEFAULT_TARGETS, frozen=frozen)
        set_modes(model, options)
        if options.grad_checkpointing:
            checkpoint_blocks(model)
        if options.compile:
            compile_blocks(model, self.device)
        self.parallel = run_in(world, self.objective, options, self.device)
        self.statistics = batch_statistics(self.objective)
        self.optimizer = build_optimizer(self.objective, options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.trained = {n: p for n, p in self.objective.named_parameters() if p.requires_grad}
        self.ema = None if options.ema is None else Ema(self.trained, options.ema)
        self.generator = torch.Generator().manual_seed(options.seed)  # of what objectives draw

    def learn(self, batches: Sequence[Batch], step: int, lr: float) -> dict[str, float]:
        """Do one optimizer step and return the losses.

        Several batches give the gradient of all their examples in one.

        Raises:
            NotFiniteError: loss or gradient are no numbers; parameters, optimizer and average are as before.
        """
        self.world.reseed(self.generator, self.options.seed, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._gradients(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = float(full_tensor(nn.utils.clip_grad_norm_(self.trained.values(), self.options.grad_clip)))
        values = dict(zip(losses, self.world.total([float(loss) for loss in losses.values()]), strict=True))
        finite = math.isfinite(norm)
        overflown = not finite and self.scaler.get_scale() > _SMALLEST_SCALE
        if not math.isfinite(values["loss"]) or not (finite or overflown):
            raise NotFiniteError(values["loss"], norm)
        self.world.average_(self.statistics)
        self.scaler.step(self.optimizer)  # none where a scaled gradient overflowed
        self.scaler.update()
        if finite and self.ema is not None:
            self.ema.update(step)
        return values

    def _gradients(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add up the gradients of the batches; return this process's part of the mean losses.

        Losses stay on the device, since numbers would wait for it.
        """
        dtype = DTYPES[self.options.precision]
        weights = [self.objective.weight(batch) for batch in batches]
        [total] = self.world.total([sum(weights)])
        means: dict[str, Tensor] = {}
        for place, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            with self.parallel.batch(last=place == len(batches)):
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    losses = self.parallel(batch, self.generator)
                share = weight / total
                means = {name: share * loss.detach() + means.get(name, 0.0) for name, loss in losses.items()}
                # Processes take the mean of their gradients, which are to be added up.
                self.scaler.scale(self.world.size * share * losses["loss"]).backward()  # type: ignore[no-untyped-call]
        return means

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Let the model be what is evaluated and saved: the average where there is one, adapters merged."""
        with ExitStack() as stack:
            stack.enter_context(self.parallel.whole(self.ema))
            stack.enter_context(merged(self.model))
            stack.enter_context(as_written(self.model))
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Return all that `load` needs and no option gives again: weights, moments, average, random numbers."""
        found = {f"weights.{name}": tensor for name, tensor in self._learned().items()}
        for name, parameter in self.trained.items():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
        if self.ema is not None:
            found |= {f"ema.{name}": tensor for name, tensor in self.ema.average.items()}
        found |= {"random.torch": torch.get_rng_state(), "random.objective": self.generator.get_state()}
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.parallel.sharded:
            return {name: tensor.detach() for name, tensor in found.items()}
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in found.items()}

    def room(self, kept: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Return empty tensors for those that `tensors` gave, in shares where this learner's own are.

        Args:
            kept: size and dtype by name; others than `tensors` gives are passed over.
        """
        own = self._learned()
        found: dict[str, Tensor] = {}
        for name, (size, dtype) in kept.items():
            kind, _, rest = name.partition(".")
            if kind in ("weights", "optimizer", "ema", "random"):
                like = own.get(rest.partition(".")[2] if kind == "optimizer" else rest)
                if like is not None and like.shape == size:
                    found[name] = torch.empty_like(like, dtype=dtype)
                else:
                    found[name] = torch.empty(size, dtype=dtype)
        return found

    def record(self) -> dict[str, Any]:
        """Return the rest of it, as JSON holds it."""
        version, words, spare = random.getstate()
        return {"scaler": self.scaler.state_dict(), "random": [version, list(words), spare]}

    def load(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Be as the learner that gave `tensors` and `record`, all but the random numbers.

        Raises:
            ModelError: they are of another model.
        """
        with _misfits_named():
            self._load(tensors, record)

    def _load(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in self._learned().items():
                tensor.copy_(tensors[f"weights.{name}"])
        if self.ema is not None:
            self.ema.load({name: tensors[f"ema.{name}"] for name in self.trained})
        self._load_moments(tensors)
        self.scaler.load_state_dict(record["scaler"])

    def load_random(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Draw the numbers that would have come next where `tensors` and `record` were taken.

        Raises:
            ModelError: they hold no such state.
        """
        with _misfits_named():
            self._load_random(tensors, record)

    def _load_random(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        version, words, spare = record["random"]
        random.setstate((version, tuple(words), spare))
        self.generator.set_state(tensors["random.objective"])
        torch.set_rng_state(tensors["random.torch"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def _load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in self.trained.items()}
        order = [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(order))}
        for index, name in enumerate(order):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{key}.{name}" in tensors:
                    state[index][key] = tensors[f"optimizer.{key}.{name}"].clone()
        given = {
            **self.optimizer.state_dict(),
            "state": {index: moments for index, moments in state.items() if moments},
        }
        self.optimizer.load_state_dict(given)

    def _learned(self) -> dict[str, Tensor]:
        """Return the tensors that steps change: trained parameters, and statistics that are no parameters."""
        parameters = {name for name, _ in self.objective.named_parameters(remove_duplicate=False)}
        statistics = {name: t for name, t in self.objective.state_dict().items() if name not in parameters}
        return {**self.trained, **statistics}


@contextmanager
def _misfits_named() -> Iterator[None]:
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:80]
        raise ModelError(f"the saved state does not fit this run ({what}); go on with an older one") from error
