"""Where the results of `mmt caption` go: stdout or a file, a report, and remarks on stderr."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmt_cli.captioning.items import Item
from mmt_cli.captioning.writers import Layout, Record, escape_field
from mmt_cli.cli import console

if TYPE_CHECKING:
    from mmt_cli.captioning.output import OutputFile
    from mmt_cli.captioning.report import Report


class CaptionSink:
    """Takes records in order.

    A file is begun with the first record, so that a run that fails before has replaced nothing.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        progress: console.Progress,
        output: "OutputFile | None" = None,
        begin: Callable[[], None] = lambda: None,
        report: "Report | None" = None,
        prefix: str = "",
        suffix: str = "",
    ) -> None:
        self._layout = layout
        self._progress = progress
        self._output = output
        self._begin = begin
        self._report = report
        self._prefix = prefix
        self._suffix = suffix
        self._begun = False
        self._streaming: Item | None = None  # whose caption is on its way

    def begin(self) -> None:
        """Begin the file, or the lines on stdout; once."""
        if self._begun:
            return
        self._begun = True
        self._begin()
        if not self._output and (header := self._layout.header()):
            console.emit(header)

    def piece(self, item: Item, text: str) -> None:
        """Print a piece of a caption."""
        if self._streaming is not item:
            self._streaming = item
            start = "" if self._layout.bare else f"{escape_field(item.path)}\t"
            console.emit(start + self._shown(self._prefix))
        console.emit(self._shown(text))

    def write(self, item: Item, records: Sequence[Record], thumbnail: bytes | None) -> None:
        """Print, or write, what became of one image."""
        self.begin()
        for record in records:
            if record.error:
                reason = str(record.error).removeprefix(f"{record.path} ")
                self._progress.note(f"mmt: {record.path}: {reason}")
            if self._streaming is item:
                console.emit(self._shown(self._suffix) + "\n")
            else:
                self._emit(self._layout.lines(record))
            if self._report:
                self._report.add(record, thumbnail)
        self._progress.advance()

    def commit(self) -> None:
        """Bring what was written to the disk."""
        if self._output:
            self._output.commit()

    def _emit(self, line: str) -> None:
        if self._output:
            self._output.write(line)
        else:
            console.emit(line)

    def _shown(self, text: str) -> str:
        return text if self._layout.bare else escape_field(text)
