"""Weights so strong that a lost mask, norm, bias or position moves the logits by far more than noise."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# How much longer than others the end token's row in the head is, so that its logit differs more between pictures.
END_GAIN = 2.0
STEPS = 10
_GIVEN_BY_PICTURE = re.compile(r"crossattention\.output\.dense|encoder_attn\.out_proj\.weight")
_GIVEN_BY_ATTENTION = re.compile(
    r"attention\.(self\.value|output\.dense)|(self_attn|encoder_attn)\.(v_proj|out_proj)\.weight"
)


def strengthen(model: nn.Module, seed: int) -> None:
    """Fill every parameter with large random numbers, each kind on its own scale; ties hold."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            module = modules[name.rpartition(".")[0]]
            parameter.copy_(_strong(name, module, torch.randn(parameter.shape, generator=generator)))


def _strong(name: str, module: nn.Module, random: Tensor) -> Tensor:
    shape = [size for size in random.shape if size > 1]
    kind = type(module).__name__
    if "position" in name or "row_embeddings" in name or "column_embeddings" in name or "wpe" in name:
        return 0.7 * random
    if name.endswith(("class_embedding", "cls_token", "distillation_token")):
        return 0.7 * random
    if name.endswith(("lambda_1", "lambda_2")):
        return 0.6 + 0.3 * random
    if len(shape) < 2:
        one = name.endswith("weight") and "Gemma" not in kind  # Gemma's norms scale by 1 + weight
        return 0.3 * random + (1.0 if one else 0.0)
    if isinstance(module, nn.Embedding):
        return 0.5 * random
    fan_in = random.shape[0] if kind == "Conv1D" else random[0].numel()
    return _gain(name, fan_in) * random / fan_in**0.5


def _gain(name: str, fan_in: int) -> float:
    if fan_in == 9:  # many depthwise convolutions in a row blow up noise
        return 1.0
    # In post-norm blocks a strong picture drowns the words: every step would give the same token.
    if _GIVEN_BY_PICTURE.search(name):
        return 0.6
    return 1.2 if _GIVEN_BY_ATTENTION.search(name) else 2.5


def silence(head: nn.Module, image_id: int | None) -> None:
    """Keep a model from writing image placeholders, which stand for pictures when the caption is read again."""
    if image_id is not None:
        with torch.no_grad():
            head.weight[image_id] = 0.0


def let_some_end(model: Any, head: nn.Module, end_id: int, batches: Sequence[dict[str, Tensor]], seed: int) -> None:
    """Give the end token a row in the head with which about half of the captions of each batch end within 10 tokens.

    A random row alone ends all captions of some seeds and none of others. So the row is random across the mean of what
    the head sees, and along the mean as long as makes half of the captions end. It is tried, as where the end token
    also begins captions it changes what it is judged by; the best of a few tries stays.
    """
    generator = torch.Generator().manual_seed(seed)
    length = END_GAIN * head.weight.norm(dim=1).median()
    tries = []
    for _ in range(5):
        seen_STD, best_ST = _unended(model, head, end_id, batches)
        mean_D = seen_STD.mean(dim=(0, 1))
        mean_D = mean_D / mean_D.norm() ** 2
        row_D = torch.randn(head.weight.shape[1], generator=generator)
        row_D -= (row_D @ mean_D) * mean_D / mean_D.norm() ** 2
        row_D *= length / row_D.norm()
        shifts_N = torch.linspace(-30, 30, 121)
        logits_NST = seen_STD @ row_D + shifts_N[:, None, None] * (seen_STD @ mean_D)
        ended_N = (logits_NST > best_ST).any(dim=1).float().mean(dim=1)
        row_D += shifts_N[(ended_N - 0.5).abs().argmin()] * mean_D
        _set_row(head, end_id, row_D)
        error = max(_error(model, batch, end_id) for batch in batches)
        tries.append((error, row_D))
        if error <= 0.25:
            break
    _set_row(head, end_id, min(tries, key=lambda tried: tried[0])[1])


def _set_row(head: nn.Module, end_id: int, row_D: Tensor) -> None:
    with torch.no_grad():
        head.weight[end_id] = row_D
        if head.bias is not None:
            head.bias[end_id] = 0.0


def _unended(model: Any, head: nn.Module, end_id: int, batches: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return what the head sees at each step of captions that may not end, and the largest logit of other tokens."""
    with _watched(head) as seen:
        for batch in batches:
            model.generate(**batch, min_new_tokens=STEPS, max_new_tokens=STEPS, do_sample=False)
    # (steps, captions, width): the batches side by side
    seen_STD = torch.cat([torch.stack(seen[start : start + STEPS]) for start in range(0, len(seen), STEPS)], dim=1)
    logits_STV = head(seen_STD)
    logits_STV[..., end_id] = -torch.inf
    return seen_STD, logits_STV.amax(dim=-1)


@contextmanager
def _watched(head: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1]))
    yield seen
    hook.remove()


def _error(model: Any, batch: dict[str, Tensor], end_id: int) -> float:
    """Return how far from one half is the share of captions that end before the last step; more if all end at one."""
    new_BT = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    places = [row.index(end_id) for row in new_BT[:, :-1].tolist() if end_id in row]
    return abs(len(places) / len(new_BT) - 0.5) + (0.3 if len(set(places)) < 2 else 0.0)
