"""The README's figure of training: `mmt train`'s own step against a plain loop over the transformers model.

    python .assets/training.py [--rounds 10] [--dtype bfloat16]

Both train GIT-base's shape (176.6 M parameters) on the same pixels and the same captions of 8 to 20 tokens, eight
images a step, in turn in one process: autocast, the gradient's norm clipped, AdamW on float32 weights. Before that
their losses without dropout must be equal. Needs transformers and 8 GB.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from mmt_cli.benchmark.comparison import paired_ratio
from mmt_cli.benchmark.foreign import export
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.model.presets import preset
from mmt_cli.training.batches import Batch
from mmt_cli.training.distributed import World
from mmt_cli.training.learner import Learner
from mmt_cli.training.objectives.caption import Caption
from mmt_cli.training.options import TrainOptions

START, END = 101, 102
LR, CLIP = 1e-5, 1.0


def rows_of(count: int, words: int) -> tuple[tuple[int, ...], ...]:
    """Return random captions of unlike lengths."""
    draw = random.Random(0)
    texts = [[draw.randrange(1000, words) for _ in range(draw.randint(6, 18))] for _ in range(count)]
    return tuple((START, *text, END) for text in texts)


class Ours:
    """`mmt train`."""

    def __init__(self, folder: str, pixels, rows, dtype: str) -> None:
        captioner = Captioner.load(folder, device="cpu", dtype="float32", trainable=True)
        self.objective = Caption(captioner.model, captioner.model.see, label_smoothing=0.0)
        options = TrainOptions(data=(), out=Path(folder), init=folder, precision=dtype, grad_clip=CLIP, device="cpu")
        task = SimpleNamespace(captioner=captioner, objective=self.objective, untrained=())
        self.learner = Learner(task, options, World())
        images = torch.arange(len(rows))
        self.batch = Batch(keys=("",) * len(rows), rows=rows, images=pixels, image_R=images)
        self.done = 0

    def loss(self) -> float:
        """Return the loss in float32 without dropout."""
        self.objective.eval()
        with torch.no_grad():
            loss = float(self.objective(self.batch, torch.Generator())["loss"])
        self.objective.train()
        return loss

    def step(self) -> None:
        """Do one."""
        self.done += 1
        self.learner.learn([self.batch], self.done, LR)


class Theirs:
    """A loop as the examples of transformers have it."""

    def __init__(self, folder: str, pixels, rows, dtype: str) -> None:
        import transformers

        self.model = transformers.GitForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        labels = ids.masked_fill(mask == 0, -100)
        self.inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}
        self.dtype = getattr(torch, dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR)

    def loss(self) -> float:
        """Return the loss in float32 without dropout."""
        self.model.eval()
        with torch.no_grad():
            loss = float(self.model(**self.inputs).loss)
        self.model.train()
        return loss

    def step(self) -> None:
        """Do one."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(**self.inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        loss.item()


def milliseconds(side: Ours | Theirs) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    side.step()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print each round, and the ratio with its 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--profile", action="store_true", help="where the time of one step of ours goes")
    given = parser.parse_args()
    config = preset("git-base")
    torch.manual_seed(0)
    pixels = torch.randn(given.batch_size, 3, config.vision.image_size, config.vision.image_size)
    rows = rows_of(given.batch_size, config.text.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        export("git-base", config, Path(folder), seed=0)
        sides = [side(folder, pixels, rows, given.dtype) for side in (Ours, Theirs)]
    losses = [side.loss() for side in sides]
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    for side in sides:
        side.step()
    times: list[list[float]] = [[], []]
    for number in range(given.rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            times[place].append(milliseconds(sides[place]))
        print(f"mmt {times[0][-1]:.0f} ms, transformers {times[1][-1]:.0f} ms", flush=True)
    ratio = paired_ratio(*times)
    rates = [1000 * given.batch_size / sorted(each)[len(each) // 2] for each in times]
    print(
        f"GIT-base, batch {given.batch_size}, {given.dtype}, {torch.get_num_threads()} threads: mmt {rates[0]:.2f} "
        f"images/s, transformers {rates[1]:.2f}, {ratio.value:.2f} x (95 %: {ratio.low:.2f} to {ratio.high:.2f})"
    )
    if given.profile:
        with torch.profiler.profile() as profile:
            sides[0].step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
