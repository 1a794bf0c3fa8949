"""Tables with a row a caption, `.csv` and `.tsv`: an image's rows together are one example.

The first row names the columns. Cells are quoted as RFC 4180 has it, so that a caption can hold the separator, quotes
(doubled) and newlines. The index holds where each row begins; captions are read again when they are asked for.
"""

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from mmt_cli.errors import DataError
from mmt_cli.training.examples import Example, TextFile
from mmt_cli.training.formats.reading import ImageFolder, Reading
from mmt_cli.training.records import cleaned, decoded, os_errors_named, printable

IMAGE_COLUMNS = ("image", "image_name", "image_path", "filename", "file_name", "filepath", "file_path", "path", "file")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "sentence")
_SEPARATORS = {".csv": ",;|\t", ".tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which cells of a row are what."""

    separator: str
    columns: int
    image: int
    caption: int

    def parse(self, cells: list[str], where: str) -> tuple[str, str]:
        """Return the image's path and the caption of a row."""
        if len(cells) != self.columns:
            raise DataError(
                f"{where} has {len(cells)} cells, and the first row {self.columns}; "
                f'put cells that hold {self.separator!r} in "quotes"'
            )
        image = cells[self.image].strip()
        if not image:
            raise DataError(f"{where} names no image; give its path or remove the row")
        return image, cleaned([cells[self.caption]], where)[0]


class _Lines:
    """The lines of a file from where it stands, as `csv.reader` wants them; knows where the next one begins."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.offset, self.number = file.tell(), 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        where = f"{self._name} line {self.number}"
        self.offset += len(line)
        self.number += 1
        return decoded(line, where)


def _rows(lines: _Lines, separator: str, name: str) -> Iterator[tuple[int, str, list[str] | DataError]]:
    """Yield where a row begins, what to call it, and its cells or what is wrong with it; blank lines are skipped."""
    # `strict` refuses a quoted cell that goes on after its quotes, or has no end.
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        offset, where = lines.offset, f"{name} line {lines.number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = printable(str(error))
            yield offset, where, DataError(f'{where} is not a row of cells ({why}); double each " in a "quoted" cell')
        except DataError as error:
            yield offset, where, error
        else:
            if cells:
                yield offset, where, cells


class Table:
    """The rows of a file that are sound, by image."""

    def __init__(self, text: TextFile, folder: ImageFolder, layout: Layout) -> None:
        self.text, self.layout = text, layout
        self.folder, self.root = folder.path, folder.root
        self._offsets = array("Q")  # of all rows, those of an image together
        self._starts = array("Q", [0])  # in `_offsets`, of each image and behind the last

    def fill(self, offsets: "array[int]", owners: "array[int]", images: int) -> None:
        """Take where rows begin, and the number of each one's image."""
        counts = array("Q", bytes(8 * images))
        for owner in owners:
            counts[owner] += 1
        for count in counts:
            self._starts.append(self._starts[-1] + count)
        places = self._starts[:-1]
        self._offsets = array("Q", bytes(8 * len(offsets)))
        for offset, owner in zip(offsets, owners, strict=True):
            self._offsets[places[owner]] = offset
            places[owner] += 1

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Example:
        rows = self._read(index)
        image, captions = rows[0][0], tuple(caption for _, caption in rows)
        # The path was checked when the row was indexed, and the row is still the same.
        return Example(key=str(self.folder / image), captions=captions, file=self.root / image)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of one image."""
        return tuple(caption for _, caption in self._read(index))

    def _read(self, index: int) -> list[tuple[str, str]]:
        """Return image and caption of each row of an image."""
        rows = []
        with self.text.open() as file:
            for offset in self._offsets[slice(*self._starts[index : index + 2])]:
                file.seek(offset)
                cells = next(csv.reader(_Lines(file, self.text.name), delimiter=self.layout.separator))
                rows.append(self.layout.parse(cells, f"{self.text.name} at byte {offset}"))
        return rows


def read_table(path: Path, reading: Reading) -> Table:
    """Index the rows of a file."""
    folder, name, findings = reading.folder(path), printable(path), reading.findings
    offsets, owners = array("Q"), array("Q")
    number_of: dict[str, int] = {}
    with os_errors_named(path), path.open("rb") as file:
        layout, lines = _layout(file, path)
        found = Table(TextFile.of(path, file), folder, layout)
        for offset, where, cells in _rows(lines, layout.separator, name):
            try:
                if isinstance(cells, DataError):
                    raise cells
                image, _ = layout.parse(cells, where)
                folder.check(image, where)
            except DataError as problem:
                findings.refuse(problem)
            else:
                offsets.append(offset)
                owners.append(number_of.setdefault(image, len(number_of)))
    found.fill(offsets, owners, len(number_of))
    findings.take(len(offsets), images=len(found), entries=len(offsets))
    return found


def _layout(file: BinaryIO, path: Path) -> tuple[Layout, _Lines]:
    """Return what the first row says, and the lines behind it."""
    name = printable(path)
    for separator in _SEPARATORS[path.suffix.lower()]:
        file.seek(0)
        lines = _Lines(file, name)
        _, where, cells = next(_rows(lines, separator, name), (0, f"{name} line 1", list[str]()))
        if isinstance(cells, DataError):
            raise cells
        names = [cell.strip().casefold().replace(" ", "_") for cell in cells]
        found = printable(", ".join(names)) or "none"
        image = next((names.index(column) for column in IMAGE_COLUMNS if column in names), None)
        caption = next((names.index(column) for column in CAPTION_COLUMNS if column in names), None)
        if image is not None and caption is not None:
            return Layout(separator=separator, columns=len(names), image=image, caption=caption), lines
    raise DataError(
        f"{where} names no image and caption columns (found {found}); begin the file with a row such as image,caption"
    )
