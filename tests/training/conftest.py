"""A data set that can be learned: the colour of a square says which caption it has."""

from pathlib import Path

import PIL.Image
import pytest

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where features are kept: one of the test's own, not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mmt/features"


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    folder = tmp_path / "squares"
    folder.mkdir()
    for index in range(12):
        name = list(COLOURS)[index % 3]
        shade = tuple(max(0, value - 5 * index) for value in COLOURS[name])
        PIL.Image.new("RGB", (40, 32), shade).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"A {name} square .\nThis is a {name} square .\n", encoding="utf-8")
    return folder
