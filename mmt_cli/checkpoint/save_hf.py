"""A trained model back into the Hugging Face folder that it came from: other weights, everything else as it was."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmt_cli.checkpoint.files import WEIGHTS, json_bytes, write_folder
from mmt_cli.checkpoint.folder import CONFIG
from mmt_cli.checkpoint.keymap import Origin
from mmt_cli.checkpoint.parts import CARD
from mmt_cli.checkpoint.reference import Source
from mmt_cli.checkpoint.tensors import PickledFiles, SafetensorsFiles
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.model.transformer import MultimodalTransformer

_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# All that transformers reads of a captioner's folder beside its config and weights.
_BESIDE = (
    *_IMAGE_PROCESSORS,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
)
_MAX_FILE_BYTES = 64 * 1024 * 1024
_DTYPE_KEYS = ("dtype", "torch_dtype")  # from transformers 5 on, and before
_TRAINING_ALONE = "contrastive."  # our names of what no family has
# Tensors that some files hold twice: their name there, and ours for the one that both are.
_TWICE = {"text_decoder.cls.predictions.decoder.bias": "head.projection.bias"}
# What a processor that splits images is told so that it does not, by the kind of its tiling.
_WHOLE_IMAGES: Mapping[str, dict[str, Any]] = {
    "idefics3": {"do_image_splitting": False},
    "internvl": {"min_patches": 1, "max_patches": 1},
}


class HuggingFaceFolder:
    """All of a Hugging Face folder that training does not change, read once: the folder itself may change meanwhile.

    Attributes:
        source: where it was read.
        files: the content of each file beside config and weights.
        absent: what other folders of transformers hold, and this one does not.
        unread: the tensors that our model has no use for, in memory of their own.
    """

    def __init__(self, source: Source) -> None:
        """Read it.

        Raises:
            ModelError: a file cannot be read, or leads out of the folder.
        """
        assert not source.family.native, f"{source.name} is of our own format"
        self.source = source
        found = {name: source.folder.read_bytes(name, _MAX_FILE_BYTES) for name in _BESIDE}
        self.files = {name: content for name, content in found.items() if content is not None}
        self.absent = found.keys() - self.files.keys()
        self._processors = {name: source.folder.read_json(name) or {} for name in _IMAGE_PROCESSORS}
        used = {name for origin in source.origins.values() for name in origin.names}
        self.unread = _read(source, [name for name in source.infos if name not in used and name not in _TWICE])

    def save(
        self,
        folder: Path,
        model: MultimodalTransformer,
        *,
        preprocessing: Preprocessing,
        card: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Write the folder with the model's weights, under the names and in the shapes that the source has them.

        Args:
            folder: where to; new, or written by us before.
            model: one that was loaded from the source, whatever became of its weights.
            preprocessing: what its images went through: the source's own, or the same without splitting.
            card: content of its README.
            dtype: of all numbers that are no integers.
        """
        files = self.files | self._whole_images(preprocessing)
        writers: dict[str, Callable[[Path], object]] = {
            CONFIG: partial(Path.write_bytes, data=json_bytes(config_of(self.source.raw_config, dtype))),
            **{name: partial(Path.write_bytes, data=content) for name, content in files.items()},
            CARD: partial(Path.write_text, data=card, encoding="utf-8"),
            WEIGHTS: partial(save_file, self.tensors(model, dtype), metadata={"format": "pt"}),
        }
        write_folder(folder, writers)

    def tensors(self, model: MultimodalTransformer, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of the model's checkpoint by the source's names, on the CPU."""
        every, own = model.state_dict(), model.own_state().keys()
        lost = [name for name in own if name not in self.source.origins and not name.startswith(_TRAINING_ALONE)]
        assert not lost, f"the source has no place for {lost}"
        found: dict[str, Tensor] = {}
        for name, origin in self.source.origins.items():
            tensor = _stored(every[name], dtype)
            # A tied tensor that the source holds twice has one memory, which no file may hold twice.
            found |= self._parts(origin, tensor if name in own else tensor.clone())
        for theirs, ours in _TWICE.items():
            if theirs in self.source.infos:
                found[theirs] = _stored(every[ours], dtype).clone()
        return found | {name: _stored(tensor, dtype) for name, tensor in self.unread.items()}

    def _parts(self, origin: Origin, tensor: Tensor) -> dict[str, Tensor]:
        """Return what `take` makes `tensor` of."""
        shapes = [self.source.infos[name].shape for name in origin.names]
        flat = (tensor.T if origin.transposed else tensor).contiguous().view(-1)
        pieces = torch.split(flat, [torch.Size(shape).numel() for shape in shapes])
        return {name: piece.view(shape) for name, piece, shape in zip(origin.names, pieces, shapes, strict=True)}

    def _whole_images(self, preprocessing: Preprocessing) -> dict[str, bytes]:
        """Return the files that describe the image processor, where they have to say that images stay whole."""
        tiling = preprocessing.tiling
        if tiling is None or tiling.split:
            return {}
        told, whole = {}, _WHOLE_IMAGES[tiling.kind]
        for name, data in self._processors.items():
            inner = data.get("image_processor")
            told[name] = {**data, "image_processor": inner | whole} if isinstance(inner, dict) else data | whole
        return {name: json_bytes(data) for name, data in told.items() if name in self.files}


def _read(source: Source, names: list[str]) -> dict[str, Tensor]:
    """Return copies of tensors of the source, as they are stored."""
    infos = {name: source.infos[name] for name in names}
    files = SafetensorsFiles(infos) if source.pickled is None else PickledFiles(source.pickled)
    with files as tensors:
        return {name: tensors.mapped(name).clone(memory_format=torch.contiguous_format) for name in names}


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def config_of(raw: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of `config.json` with the dtype of the weights in it, in the spelling that it has."""
    name = str(dtype).removeprefix("torch.")
    # Every version of transformers reads the old spelling.
    missing = {} if raw.keys() & set(_DTYPE_KEYS) else {"torch_dtype": name}
    return {**_with_dtype(raw, name), **missing}


def _with_dtype(node: Any, dtype: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {key: dtype if key in _DTYPE_KEYS else _with_dtype(value, dtype) for key, value in node.items()}
