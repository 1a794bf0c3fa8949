"""Blocks that torch compiles for the training step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmt_cli.errors import UsageError
from mmt_cli.model.transformer import MultimodalTransformer

_COMPILERS = ("c++", "g++", "clang++")


def compile_blocks(model: MultimodalTransformer, device: torch.device) -> None:
    """Have the image tower and each block of the decoder compiled at the first step; weights keep their names.

    Not the whole: what the fusion does depends on the lengths of the texts, which change from batch to batch.

    Raises:
        UsageError: the CPU's code needs a C++ compiler, and there is none.
    """
    named = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, (named,) if named else _COMPILERS)):
        raise UsageError(
            f"no C++ compiler (--compile, looked for {named or ', '.join(_COMPILERS)}); install one or leave it out"
        )
    for part in (model.vision, *model.blocks):
        part.compile()


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Run the parts as they are written: captioning has shapes and caches of its own, each to be compiled anew."""
    compiled = [(part, part._compiled_call_impl) for part in model.modules() if part._compiled_call_impl is not None]
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled:
            part._compiled_call_impl = call
