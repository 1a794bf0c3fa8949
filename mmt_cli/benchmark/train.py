"""The workload of training: one step on random pixels, random text and random targets.

B items, C channels, H height, W width in pixels, T text tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmt_cli.benchmark.layers import MILLISECONDS, Stopwatch
from mmt_cli.benchmark.options import BenchOptions, Case
from mmt_cli.benchmark.results import PhaseTimes
from mmt_cli.benchmark.workload import image_places, random_questions, random_text
from mmt_cli.captioning.captioner import Captioner
from mmt_cli.device import resolve_dtype

IGNORED = -100  # cross-entropy's own mark for positions without a target


class TrainWorkload:
    """Trains on one batch again and again: dropout on, every weight trained, no gradient clipped.

    The text is `prompt_tokens + gen_tokens` long, with a target at each of its tokens, or one a row where the model has
    a single readout. The learning rate is zero, so that all steps do the same work whatever the gradients are.
    """

    whole = "train"
    parts: tuple[str, ...] = ("forward", "backward", "optimizer")
    across: tuple[str, ...] = ()
    trains = True

    def __init__(self, captioner: Captioner, options: BenchOptions, case: Case) -> None:
        self.model, self.device = captioner.model.train().requires_grad_(True), captioner.device
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.case, batch_size = case, case.batch_size
        config, length = self.model.config, options.text_length(case)
        generator = torch.Generator().manual_seed(options.seed)
        size = (config.vision.channels, config.vision.image_size, config.vision.image_size)
        self.pixels_BCHW = torch.randn(batch_size, *size, generator=generator).to(self.device)
        text = random_text(config, batch_size, length, options.seed)
        self.token_ids_BT = torch.tensor(text, device=self.device)
        target = random_text(config, batch_size, length if config.cacheable else 1, options.seed + 1)
        self.target_BT = torch.tensor(target, device=self.device)
        self.target_BT[:, : len(image_places(config))] = IGNORED
        questions_BP = random_questions(config, batch_size, case.prompt_tokens, options.seed)
        self.questions_BP = None if questions_BP is None else questions_BP.to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)

    def run(self, watch: Stopwatch[Any, Any]) -> None:
        """Do one step under the stopwatch."""
        with watch.phase(self.whole):
            with watch.phase("forward"):
                loss = self.loss()
            with watch.phase("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            with watch.phase("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        """Return the mean cross-entropy of the next tokens."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits_BTV = self.model(self.token_ids_BT, self.pixels_BCHW, self.questions_BP)
            return functional.cross_entropy(logits_BTV.flatten(0, 1), self.target_BT.flatten())

    def tokens_per_s(self, phases: Mapping[str, PhaseTimes]) -> float | None:
        """Return tokens with a target."""
        return int((self.target_BT != IGNORED).sum()) / phases[self.whole].median_ms * MILLISECONDS
