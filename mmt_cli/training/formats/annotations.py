"""One JSON file for a whole data set: COCO captions, Karpathy's splits, LLaVA's conversations; told by content.

COCO: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.
Karpathy (`dataset_flickr8k.json`): `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`; `train`
and `restval` are to train on, `val` is to score on, `test` is not touched.
LLaVA: `[{"image", "conversations": [{"from": "human" | "gpt", "value"}]}]`. Every caption here is learned without a
question, so answers are captions only where the first turn asks for a description of the image.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmt_cli.errors import DataError
from mmt_cli.training.examples import Example, Packed
from mmt_cli.training.formats.reading import Reading, Split
from mmt_cli.training.records import cleaned, json_value, os_errors_named, printable

_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train", "restval"), "val": ("val",)}
# The instructions of LLaVA's pretraining and of its detailed descriptions ask in these words (Liu et al. 2023,
# tables 11 and 12).
_ASKS_FOR_DESCRIPTION = re.compile(
    r"describ|descript|caption|summar|explain|explanation|interpretation|account of|narrat|depict|portray"
    r"|characteri[sz]e|rundown|analy[sz]|contents of|break down|walk through|illustrate|examine"
    r"|what (?:is this|is in|do you see|can you see)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"<image>")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the file says of one image, unchecked."""

    where: str
    image: object
    captions: list[object]


# Yields in place of an entry: what is wrong with it, or None where it is not to be learned from.
Entries = Iterator[Entry | DataError | None]


def read_json(path: Path, reading: Reading) -> Packed:
    """Index the images of a file, in its order."""
    name = printable(path)
    with os_errors_named(path):
        value = json_value(path.read_bytes(), name)
    folder, findings, found = reading.folder(path), reading.findings, Packed()
    for entry in _format(value, name)(value, name, reading.split):
        if entry is None:
            findings.left_out += 1
            continue
        try:
            if isinstance(entry, DataError):
                raise entry
            if not isinstance(entry.image, str) or not entry.image:
                raise DataError(f"{entry.where} names no image; give its path or remove the entry")
            captions = cleaned(entry.captions, entry.where)
            file = folder.find(entry.image, entry.where)
        except DataError as problem:
            findings.refuse(problem)
        else:
            found.append(Example(key=str(folder.path / entry.image), captions=captions, file=file))
            findings.take(len(captions))
    return found


def _format(value: object, name: str) -> "Callable[[object, str, Split], Entries]":
    images = value.get("images") if isinstance(value, dict) else value
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(value, list) and (not value or (isinstance(first, dict) and "conversations" in first)):
        return _llava
    if isinstance(value, dict) and isinstance(images, list):
        if isinstance(value.get("annotations"), list):
            return _coco
        if isinstance(first, dict) and "sentences" in first:
            return _karpathy
    known = "COCO captions, a dataset_*.json of Karpathy or conversations of LLaVA"
    keys = printable(", ".join(map(str, value))) if isinstance(value, dict) else f"a {type(value).__name__}"
    raise DataError(f"{name} is none of the JSON files that can be read (found {keys}); give {known}")


def _objects(values: object, where: str) -> Iterator[tuple[str, dict[str, object] | DataError]]:
    """Yield each value of a list with what to call it; what is no object gives the error for that."""
    assert isinstance(values, list), "the format was told by its lists"
    for number, value in enumerate(values):
        here = f"{where}[{number}]"
        if isinstance(value, dict):
            yield here, value
        else:
            yield here, DataError(f"{here} is not a JSON object but a {type(value).__name__}; mend or remove it")


def _coco(value: object, name: str, _split: Split) -> Entries:
    assert isinstance(value, dict)
    captions: dict[object, list[object]] = {}
    entries: list[Entry | DataError] = []
    for where, image in _objects(value["images"], f"{name} images"):
        if isinstance(image, DataError):
            entries.append(image)
            continue
        number = _identity(image.get("id"))
        if number is None or number in captions:
            entries.append(DataError(f'{where} has no "id" of its own; give each image one'))
            continue
        captions[number] = []
        entries.append(Entry(where=where, image=image.get("file_name"), captions=captions[number]))
    for where, note in _objects(value["annotations"], f"{name} annotations"):
        if isinstance(note, DataError):
            yield note
            continue
        mine = captions.get(_identity(note.get("image_id")))
        if mine is None:
            yield DataError(f'{where} has an "image_id" that no image has; mend or remove it')
        else:
            mine.append(note.get("caption"))
    yield from entries


def _identity(value: object) -> object:
    """Return an id that can be looked up, None where it is none; the number 1 and the text "1" are not the same."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _karpathy(value: object, name: str, split: Split) -> Entries:
    assert isinstance(value, dict)
    for where, image in _objects(value["images"], f"{name} images"):
        if isinstance(image, DataError):
            yield image
        elif not isinstance(image.get("split"), str):
            yield DataError(f'{where} has no "split"; give train, restval, val or test')
        elif image["split"] in _SPLITS[split]:
            file, folder = image.get("filename"), image.get("filepath", "")
            path = f"{folder}/{file}" if folder and isinstance(folder, str) and isinstance(file, str) else file
            yield Entry(where=where, image=path, captions=[_raw(s) for s in _list(image.get("sentences"))])


def _raw(sentence: object) -> object:
    return sentence.get("raw") if isinstance(sentence, dict) else sentence


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _llava(value: object, name: str, _split: Split) -> Entries:
    for where, entry in _objects(value, name):
        if isinstance(entry, DataError):
            yield entry
        elif "image" not in entry:
            yield None
        else:
            yield _described(entry, where)


def _described(entry: dict[str, object], where: str) -> Entry | DataError | None:
    turns = _list(entry.get("conversations"))[:2]
    texts = [turn.get("value") for turn in turns if isinstance(turn, dict)]
    speakers = [turn.get("from") for turn in turns if isinstance(turn, dict)]
    if speakers != ["human", "gpt"] or not isinstance(texts[0], str):
        return DataError(f'{where} does not begin with a question of "human" and an answer of "gpt"; mend or remove it')
    question = _PLACEHOLDER.sub("", texts[0]).strip()
    if question and not _ASKS_FOR_DESCRIPTION.search(question):
        return None
    return Entry(where=where, image=entry["image"], captions=[texts[1]])
