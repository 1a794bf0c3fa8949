"""The training loop: a generator of events, so that whoever runs it decides what to show."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmt_cli.errors import DataError, DivergedError
from mmt_cli.training.batches import Batch, batches
from mmt_cli.training.card import ModelCard
from mmt_cli.training.checkpoints import Saved, step_of
from mmt_cli.training.distributed import World
from mmt_cli.training.evaluate import Scores
from mmt_cli.training.events import Evaluated, Event, Noted, Started, Stepped, Stopped
from mmt_cli.training.learner import Learner, NotFiniteError
from mmt_cli.training.memory import peak_memory
from mmt_cli.training.optim import learning_rate, warmup_steps
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.order import Job, Position, plan
from mmt_cli.training.origin import check_origin
from mmt_cli.training.report import open_report
from mmt_cli.training.run_folder import RunFolder
from mmt_cli.training.shards import read_state
from mmt_cli.training.state import Progress, check_same, identity, tensors_identity
from mmt_cli.training.stop import StopWish, StopWished
from mmt_cli.training.tasks import TASKS

MOST_NAMED = 64  # examples of a batch that an error names


class Trainer:
    """One run, from options to a checkpoint folder; or one process's part in it."""

    def __init__(self, options: TrainOptions, wish: StopWish | None = None, world: World | None = None) -> None:
        """Set the run up; nothing is written.

        Args:
            options: of the run.
            wish: whoever holds it can have the run saved and ended, in all its processes.
            world: the processes of the run, if it has several; each does the same as the others at the same time.
        """
        check_origin(options)
        self.options = options
        self.wish = StopWish() if wish is None else wish
        self.world = World() if world is None else world
        self.folder = RunFolder(options, self.world)
        self.task = TASKS[options.objective](options)
        self.captioner = self.task.captioner
        self.model = self.captioner.model
        self.learner = Learner(self.task, options, self.world)
        self.total_steps = options.total_steps(self.task.count)
        self.eval_every = options.eval_every or options.steps_an_epoch(self.task.count)
        self.identity = self._identity()
        self.progress = Progress()
        if self.folder.saved is not None:
            self.folder.saved = self._loaded(self.folder.saved)
        data, val = self.task.findings
        self.folder.begin(self.captioner, ModelCard(options=options, data=data, val=val))

    def _identity(self) -> dict[str, object]:
        options, total = self.options, self.total_steps
        frozen = {name: p for name, p in self.learner.objective.named_parameters() if not p.requires_grad}
        endless = options.schedule == "constant"  # a longer run is the same up to where the shorter one ends
        return identity(
            options,
            **self.task.identity(),
            **{"--steps": None if endless else total, "--warmup": warmup_steps(options, total)},
            model=self.model.config.to_json(),
            frozen=tensors_identity(frozen),
        )

    def _loaded(self, saved: Saved) -> Saved:
        """Be as the run was when this was saved; return it with all its tensors."""
        check_same(saved.record.get("identity", {}), self.identity, saved.folder)
        self.progress = Progress.from_json(saved.record)
        if self.learner.parallel.sharded or not saved.tensors:
            saved = dataclasses.replace(saved, tensors=read_state(saved.tensor_files, self.learner.room))
        self.learner.load(saved.tensors, saved.record)
        return saved

    def run(self) -> Iterator[Event]:
        """Train to the last step, yielding what happens.

        Raises:
            DivergedError: the loss or a gradient is NaN or infinite; the weights are those before that step.
            DataError: an image cannot be read.
            OutputError: a checkpoint cannot be written.
        """
        parameters = list(self.model.parameters())
        reported = self.options if self.world.leads else dataclasses.replace(self.options, report_to="none")
        with self.folder.opened(), open_report(reported, self.progress.step) as self.report:
            yield Started(
                steps=self.total_steps,
                done=self.progress.step,
                unit=self.task.unit,
                train_count=self.task.count,
                val_count=self.task.val_count,
                parameters=sum(p.numel() for p in parameters),
                trainable=sum(p.numel() for p in parameters if p.requires_grad),
            )
            yield from self._prepare()
            if self.folder.saved is not None:
                # Only now: what has happened since may have drawn numbers of its own.
                self.learner.load_random(self.folder.saved.tensors, self.folder.saved.record)
                self.folder.saved = None
                if self._unscored:
                    yield from self._evaluate()
                    self._save()
            try:
                yield from self._steps()
            except DataError:
                yield from self._kept()
                raise

    def _kept(self) -> Iterator[Event]:
        """Save what would be lost where unreadable data end the run; the others of a team would not know of it."""
        newest = self.folder.checkpoints.newest
        if self.progress.step and self.world.size == 1 and (newest is None or step_of(newest) != self.progress.step):
            self._save()
            yield Noted(text=f"step {self.progress.step} is saved; go on with --resume auto when the data are mended")

    def _prepare(self) -> Iterator[Event]:
        """Have the data prepared: by one process of each machine, and then by the others, which find what it left."""
        first = self.world.place == 0
        with self.learner.parallel.whole(None), self.wish.interruptible():
            if not first:
                self.world.meet()
            yield from self.task.prepare()
            if first:
                self.world.meet()

    def _steps(self) -> Iterator[Event]:
        progress, task, world = self.progress, self.task, self.world
        share = {"batch_size": self.options.batch_size, "rank": world.rank, "world": world.size}

        def jobs(start: Position) -> Iterator[Job]:
            return plan(task.order, task.count, start=start, **share)

        task.follow(jobs, progress.position)
        stream = self._collected(batches(task.batch, jobs(progress.position)))
        clock, seen = time.perf_counter(), 0
        while progress.step < self.total_steps and not self._gains_nothing:
            group = next(stream)
            yield from (Noted(text=problem) for batch in group for problem in batch.problems)
            lr = learning_rate(progress.step + 1, self.options, self.total_steps)
            progress.losses.append(self._learn(group, lr))
            progress.step += 1
            progress.position = group[-1].after
            seen += world.size * sum(len(batch.keys) for batch in group)
            stepped = self._stepped(lr, seen / (time.perf_counter() - clock))
            yield stepped
            evaluates = self._due(self.eval_every)
            if evaluates and not self._wished:
                yield from self._evaluate()
            saved = None
            if self._due(self.options.save_every or self.eval_every) or self._wished or self._gains_nothing:
                saved = self._save()
            if self._wished and (self._unscored or progress.step < self.total_steps):
                yield Stopped(step=progress.step, folder=saved or self._save(), wished=True)
                return
            if self._gains_nothing:
                yield Stopped(step=progress.step, folder=saved or self._save(), wished=False)
                return
            if stepped.logged or evaluates:
                clock, seen = time.perf_counter(), 0

    @property
    def _wished(self) -> bool:
        """Whether any process of the run is asked to stop."""
        return self.world.any(self.wish.made)

    def _due(self, every: int) -> bool:
        """Say whether what is done every so many steps, and at the last one, is to be done now."""
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    @property
    def _unscored(self) -> bool:
        """Whether the last step should have been evaluated and was not."""
        due = self.task.val_count and self._due(self.eval_every)
        return bool(due) and self.progress.scored != self.progress.step

    @property
    def _gains_nothing(self) -> bool:
        limit = self.options.early_stop
        return limit is not None and self.progress.waited >= limit

    def _collected(self, stream: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Yield the batches of one optimizer step together; a step never reaches into the next epoch."""
        group: list[Batch] = []
        for batch in stream:
            group.append(batch)
            if len(group) == self.options.grad_accum or batch.after.taken == self.task.count:
                yield group
                group = []

    def _learn(self, group: Sequence[Batch], lr: float) -> dict[str, float]:
        step = self.progress.step + 1
        try:
            return self.learner.learn(group, step, lr)
        except NotFiniteError as error:
            keys = [key for keys in self.world.each([key for batch in group for key in batch.keys]) for key in keys]
            figures = {"loss": str(error.loss), "gradient_norm": str(error.norm), self.task.unit: keys}
            self.folder.log({"step": step, "kind": "diverged", **figures})
            more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
            newest = self.folder.checkpoints.newest
            start = "" if newest is None else f", and start a new --out with --init {newest}"
            raise DivergedError(
                f"training diverged at step {step} (loss {error.loss}, gradient norm {error.norm}; "
                f"{self.task.unit} {', '.join(keys[:MOST_NAMED])}{more}); lower --lr{start}"
            ) from error

    def _stepped(self, lr: float, per_s: float) -> Stepped:
        progress = self.progress
        logged = progress.step % self.options.log_every == 0 or progress.step == self.total_steps
        parts = _means(progress.losses)
        loss = parts.pop("loss")
        memory = peak_memory(self.captioner.device)
        if logged:
            figures = {"loss": loss, **parts, "lr": lr, f"{self.task.unit}_per_s": per_s}
            self._log({"step": progress.step, "kind": "train", **figures})
            progress.losses.clear()
        return Stepped(step=progress.step, loss=loss, parts=parts, lr=lr, per_s=per_s, memory=memory, logged=logged)

    def _log(self, record: Mapping[str, Any]) -> None:
        self.folder.log(record)
        self.report.log(record)

    def _evaluate(self) -> Iterator[Event]:
        """Score the model as it would be saved, unless there is a wish to stop: then that is left to the next run."""
        progress, folder = self.progress, self.folder
        if not self.task.val_count:
            return
        with self.learner.as_saved():
            scores = self.world.of_leader(self._score)
            if scores is None:
                return
            best = progress.best is None or scores.rank > progress.best
            progress.scored, progress.rank = progress.step, scores.rank
            progress.figures, progress.intervals = dict(scores.figures), scores.ends
            progress.waited = 0 if best else progress.waited + 1
            if best:
                progress.best = scores.rank
                folder.save_best(self.captioner, progress)
                folder.save_scores(scores)
        more = {"intervals": progress.intervals, "samples": scores.samples} if scores.captions else {}
        self._log({"step": progress.step, "kind": "eval", **progress.figures, **more})
        yield Evaluated(step=progress.step, scores=scores, best=best)

    def _score(self) -> Scores | None:
        try:
            with self.wish.interruptible():
                return self.task.score()
        except StopWished:
            return None

    def _save(self) -> Path:
        """Write the step folder; without a validation set the run's folder holds the same model."""
        progress, learner = self.progress, self.learner
        tensors, record = learner.tensors(), {**progress.to_json(), **learner.record(), "identity": self.identity}
        with learner.as_saved():
            if not self.task.val_count:
                self.folder.save_best(self.captioner, progress)
            return self.folder.save_step(
                self.captioner,
                progress,
                tensors=tensors,
                sharded=learner.parallel.sharded,
                record=record,
            )


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each loss."""
    return {name: sum(step[name] for step in losses) / len(losses) for name in losses[0]}
