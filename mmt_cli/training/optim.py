"""The optimizer, its schedule, and which parameters it moves."""

import math

import torch
from torch import nn

from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.options import TrainOptions

_PARTS = {"none": (), "vision": ("vision.",), "text": ("text.", "blocks.", "head.")}


def learning_rate(step: int, options: TrainOptions, total_steps: int) -> float:
    """Return the rate of a step, counted from 1: linear warm-up to `lr`, then what the schedule says.

    `cosine` is half of one, down to zero behind the last step; `linear` goes there on a straight line.
    """
    warmup = warmup_steps(options, total_steps)
    if step <= warmup:
        return options.lr * step / warmup
    passed = (step - warmup) / (total_steps - warmup + 1)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * passed)), "linear": 1 - passed, "constant": 1.0}
    return options.lr * share[options.schedule]


def warmup_steps(options: TrainOptions, total_steps: int) -> int:
    """Return the steps of the warm-up: at most half of all."""
    return min(options.warmup, total_steps // 2)


def frozen_names(options: TrainOptions, untrained: tuple[str, ...]) -> tuple[str, ...]:
    """Return the beginnings of the names of the model's parameters that keep their values."""
    return (*_PARTS[options.freeze], *untrained)


def freeze(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Train all parameters but those whose names begin so."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))


def set_modes(model: MultimodalTransformer, options: TrainOptions) -> None:
    """Turn dropout on, but leave batch statistics that came with trained weights as they are.

    Batches here are far smaller than those the towers were trained with.
    """
    model.train()
    if options.freeze == "vision":
        model.vision.eval()
    if options.vision_init is not None or options.init is not None:
        for module in model.vision.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: norms, biases and single vectors stay free."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
