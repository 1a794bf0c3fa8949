"""The parts of a checkpoint beside its weights: tokenizer, image preprocessing, defaults of decoding."""

from pathlib import Path
from typing import Any

from mmt_cli.checkpoint.folder import CONFIG, Folder
from mmt_cli.checkpoint.generation_config import generation_from_hf
from mmt_cli.checkpoint.image_processor import preprocessing_from_hf
from mmt_cli.checkpoint.reference import Source
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ConfigError, ModelError, UsageError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tokenizer import Tokenizer
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.image_config import ConvTowerConfig

TOKENIZER, PREPROCESSOR, GENERATION, CARD = "tokenizer.json", "preprocessor.json", "generation.json", "README.md"
_PROCESSOR, _IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
_MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
# Of the side that a tower was made for. Attention to an image takes time with the fourth power of its side.
_MAX_STRETCH = 2


def load_tokenizer(source: Source, override: str | None = None) -> Tokenizer | None:
    """Return the folder's tokenizer, or the one `override` names; None where the folder has none."""
    folder = source.folder if override is None else Folder(Path(override))
    if source.family.native:
        if override is None and folder.file(TOKENIZER) is None:
            return None
        return Tokenizer.load(folder.path)
    if folder.path.is_file():
        return Tokenizer.from_folder(folder.path)
    return Tokenizer.from_folder(folder.path, lambda name: folder.read_bytes(name, _MAX_TOKENIZER_BYTES))


def load_preprocessing(source: Source) -> Preprocessing:
    """Return the folder's image preprocessing; without one, that of a new model.

    Raises:
        ModelError: the file is broken, or makes images of a size that the model cannot read.
    """
    name, found = _own(source.folder) if source.family.native else _hugging_face(source)
    if found is None:
        return default_preprocessing(source.config)
    made_for = source.config.vision.image_size
    try:
        source.config.image_shape(found.height, found.width)
        if not source.family.native and max(found.height, found.width) > _MAX_STRETCH * made_for:
            sides = f"{found.height} x {found.width} pixels, the tower is made for {made_for} x {made_for}"
            raise ConfigError(f"the images are far too large ({sides}); use the preprocessor file of this checkpoint")
    except ConfigError as error:
        path = source.folder.path / name
        raise ModelError(f"preprocessing and config do not fit ({path}): {error}") from error
    return found


def _own(folder: Folder) -> tuple[str, Preprocessing | None]:
    data = folder.read_json(PREPROCESSOR)
    return PREPROCESSOR, None if data is None else Preprocessing.from_json(data)


def _hugging_face(source: Source) -> tuple[str, Preprocessing]:
    """Read the file of today, which holds it within that of a processor, or else that of older folders.

    A folder with neither gets what its family does by default, at the size that the model was made for.
    """
    kind = {"image_processor_type": source.family.image_processor}
    data = source.folder.read_json(_PROCESSOR)
    if data is not None and isinstance(data.get("image_processor"), dict):
        return _PROCESSOR, preprocessing_from_hf(_typed(data["image_processor"], kind))
    data = source.folder.read_json(_IMAGE_PROCESSOR)
    if data is not None:
        return _IMAGE_PROCESSOR, preprocessing_from_hf(_typed(data, kind))
    side = source.config.vision.image_size
    sizes: dict[str, Any] = {"size": {"height": side, "width": side}}
    if source.family.image_processor.startswith("CLIP"):
        sizes = {"size": {"shortest_edge": side}, "crop_size": side}
    elif source.family.image_processor.startswith("Idefics3"):
        sizes = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    return CONFIG, preprocessing_from_hf(kind | sizes)


def _typed(data: dict[str, Any], kind: dict[str, str]) -> dict[str, Any]:
    """Return the JSON of an image processor with its type, which old files leave out."""
    return data if "image_processor_type" in data or "feature_extractor_type" in data else kind | data


def default_preprocessing(config: ModelConfig) -> Preprocessing:
    """Return the preprocessing of a new model: EfficientNet-Lite's own for its tower, else pixels from -1 to 1."""
    size = config.vision.image_size
    if isinstance(config.vision, ConvTowerConfig):
        return Preprocessing(height=size, width=size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Preprocessing(height=size, width=size, mean=(0.5,) * 3, std=(0.5,) * 3)


def load_generation(source: Source) -> GenerationOptions:
    """Return the folder's defaults for generation, or the general ones.

    Our own models end a text that repeats itself unless their file says otherwise; those of others write what they
    wrote before.

    Raises:
        ModelError: they are broken, or ask for what we cannot do.
    """
    name = GENERATION if source.family.native else CONFIG
    try:
        if not source.family.native:
            found = generation_from_hf(source.generation_config, source.raw_config)
            return source.family.generation(found, source.habits)
        data = source.folder.read_json(GENERATION)
        return GenerationOptions.from_json({"stop_loops": True, **(data or {})})
    except UsageError as error:
        raise ModelError(f"{source.folder.path / name}: {error}") from error
