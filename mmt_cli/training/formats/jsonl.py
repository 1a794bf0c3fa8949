"""JSON Lines: `{"image": PATH, "caption": TEXT}` or `{"image": PATH, "captions": [TEXT, …]}`; blank lines are skipped.

The index holds where each line begins, 8 bytes a line; what a line says is read again when it is asked for.
"""

from array import array
from pathlib import Path

from mmt_cli.errors import DataError
from mmt_cli.training.examples import Example, TextFile
from mmt_cli.training.formats.reading import ImageFolder, Reading
from mmt_cli.training.records import json_object, os_errors_named, printable, record_captions


class JsonLines:
    """The lines of a file that are sound."""

    def __init__(self, text: TextFile, folder: ImageFolder) -> None:
        self.text = text
        self.folder, self.root = folder.path, folder.root
        self.offsets = array("Q")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> Example:
        image, captions = self._read(index)
        # The path was checked when the line was indexed, and the line is still the same.
        return Example(key=str(self.folder / image), captions=captions, file=self.root / image)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of one."""
        return self._read(index)[1]

    def _read(self, index: int) -> tuple[str, tuple[str, ...]]:
        offset = self.offsets[index]
        with self.text.open() as file:
            file.seek(offset)
            line = file.readline()
        return parse_line(line, f"{self.text.name} at byte {offset}")


def read_jsonl(path: Path, reading: Reading) -> JsonLines:
    """Index the lines of a file."""
    folder, name, offset = reading.folder(path), printable(path), 0
    with os_errors_named(path), path.open("rb") as file:
        found = JsonLines(TextFile.of(path, file), folder)
        for number, line in enumerate(file, 1):
            if not line.isspace():
                where = f"{name} line {number}"
                try:
                    image, captions = parse_line(line, where)
                    folder.check(image, where)
                except DataError as problem:
                    reading.findings.refuse(problem)
                else:
                    found.offsets.append(offset)
                    reading.findings.take(len(captions))
            offset += len(line)
    return found


def parse_line(line: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the image's path and the captions that a line holds."""
    record = json_object(line, where)
    image = record.get("image")
    if not isinstance(image, str) or not image:
        raise DataError(f'{where}: "image" is missing or not a path; give {{"image": PATH, "caption": TEXT}}')
    return image, record_captions(record, where)
