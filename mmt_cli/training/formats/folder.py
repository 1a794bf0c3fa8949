"""A folder of images, beside each a `.txt` file of the same name with a caption a line."""

from pathlib import Path

from mmt_cli.captioning.sources import natural_key
from mmt_cli.errors import DataError
from mmt_cli.inputs.image import IMAGE_SUFFIXES
from mmt_cli.training.examples import Example, Packed
from mmt_cli.training.formats.reading import Reading
from mmt_cli.training.records import locate, os_errors_named, printable, text_captions


def read_folder(folder: Path, reading: Reading) -> Packed:
    """Index the images in natural order."""
    root = folder.resolve()
    with os_errors_named(folder):
        names = {entry.name for entry in root.iterdir()}
    found = Packed()
    for name in sorted(names, key=natural_key):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            try:
                example = _example(folder, root, name, names)
            except DataError as problem:
                reading.findings.refuse(problem)
            else:
                found.append(example)
                reading.findings.take(len(example.captions))
    return found


def _example(folder: Path, root: Path, name: str, names: set[str]) -> Example:
    sidecar = Path(name).with_suffix(".txt").name
    if sidecar not in names:
        raise DataError(f"{printable(folder / name)} has no captions; write them to {printable(sidecar)} beside it")
    text = locate(root, sidecar, printable(folder))
    with os_errors_named(folder / sidecar):
        captions = text_captions(text.read_bytes(), printable(folder / sidecar))
    return Example(key=str(folder / name), captions=captions, file=locate(root, name, printable(folder)))
