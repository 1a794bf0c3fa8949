"""The state of a run whose tensors lie in shares: each process writes its own, any number of processes reads them.

Through `torch.distributed.checkpoint`, in its safetensors format: no file is a pickle, which could run code.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmt_cli.errors import ModelError
from mmt_cli.inputs.printable import printable
from mmt_cli.training.distributed import Team

Room = Callable[[Mapping[str, tuple[torch.Size, torch.dtype]]], dict[str, Tensor]]


def write_shards(tensors: dict[str, Tensor], folder: Path, team: Team) -> None:
    """Write tensors into a folder, each process its shares; returns in the leader when all have written."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(tensors, storage_writer=writer, process_group=team.words)


def read_state(folder: Path, room: Room) -> dict[str, Tensor]:
    """Return the tensors that lie in a folder's safetensors files, in shares or whole.

    Args:
        folder: holds the files.
        room: sizes and dtypes by name → empty tensors to fill, in shares or whole; names that it leaves out are not
            read.

    Raises:
        ModelError: they cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        reader = HuggingFaceStorageReader(str(folder))
        kept: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = room({name: (found.size, found.properties.dtype) for name, found in kept.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that processes do not talk to each other here
            load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = printable(str(error))[:80]
        raise ModelError(f"the checkpoint cannot be read ({folder}, {reason}); go on with an older one") from error
    return tensors
