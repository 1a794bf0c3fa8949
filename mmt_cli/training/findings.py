"""What a look through a data set found: how much there is, and each entry that cannot be used."""

from fractions import Fraction

from mmt_cli.errors import DataError, TooManyFailuresError

SHOWN = 30  # problems that are kept word for word


class Findings:
    """Counts of one data set, and what is wrong with it, a line a problem.

    Args:
        max_errors: how many entries may be broken, `N` or `N%` of all; None: none.
    """

    def __init__(self, max_errors: str | None = None) -> None:
        self.max_errors = max_errors
        self.entries = 0  # lines, rows, members: what a file is a list of
        self.images = 0
        self.captions = 0
        self.left_out = 0  # entries that are sound and not of the kind that is learned from
        self.broken = 0  # entries that cannot be used
        self.lost: list[str] = []  # why a source, or the rest of it, cannot be read
        self._lines: list[str] = []

    def take(self, captions: int, *, images: int = 1, entries: int = 1) -> None:
        """Count entries that can be used, and the images and captions that they hold together."""
        self.entries += entries
        self.images += images
        self.captions += captions

    def refuse(self, problem: DataError) -> None:
        """Note an entry that cannot be used."""
        self.broken += 1
        self._note(str(problem))

    def lose(self, problem: DataError) -> None:
        """Note why a source, or the rest of it, cannot be read at all; no `max_errors` allows that."""
        self.lost.append(str(problem))
        self._note(str(problem))

    def _note(self, line: str) -> None:
        if len(self._lines) < SHOWN:
            self._lines.append(line)

    @property
    def problems(self) -> int:
        """How many there are."""
        return self.broken + len(self.lost)

    @property
    def lines(self) -> list[str]:
        """The first problems, a line each, and how many more there are."""
        more = self.problems - len(self._lines)
        return [*self._lines, f"and {more:,} more"] if more else list(self._lines)

    @property
    def counts(self) -> str:
        """How much can be used, in words."""
        if not self.images:
            return f"{self.captions:,} sentences"
        return f"{self.images:,} images, {self.captions:,} captions"

    @property
    def left_out_line(self) -> str | None:
        """What is not learned from, in one line; None where all is."""
        parts = {"broken": self.broken, "without a description": self.left_out}
        counts = [f"{count:,} {kind}" for kind, count in parts.items() if count]
        return f"entries left out: {', '.join(counts)}" if counts else None

    def check(self) -> None:
        """Raise where more is wrong than is allowed.

        Raises:
            BrokenDataError: carries these findings.
        """
        if self.lost or self.broken > self._allowed:
            raise BrokenDataError(self)

    @property
    def _allowed(self) -> int:
        if self.max_errors is None:
            return 0
        if self.max_errors.endswith("%"):
            return int((self.entries + self.broken) * Fraction(self.max_errors[:-1]) / 100)
        return int(self.max_errors)

    @property
    def message(self) -> str:
        """Why the data cannot be learned from."""
        first = (self.lost or self._lines)[0]
        if self.problems == 1:
            return first
        allowed = "0" if self.max_errors is None else self.max_errors
        return f"{self.problems:,} problems in the data (--max-errors {allowed}), the first: {first}"


class BrokenDataError(DataError):
    """A data set with more problems than are allowed; its findings have a line for each."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings.message)
        self.findings = findings
        if findings.max_errors is not None and not findings.lost:
            self.exit_code = TooManyFailuresError.exit_code
