"""Every example in the README runs, in order, on the photos of tests/data."""

import io
import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from mmt_cli.cli.app import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ mmt (.+)$", README, flags=re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.+?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a reader's: `photos`, with captions beside them, and `shards` of the same."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for photo in (ROOT / "tests/data").glob("*.jpg"):
        shutil.copy(photo, folder / "photos")
        (folder / "photos" / f"{photo.stem}.txt").write_text(f"A {photo.stem} in a photo.\n", encoding="utf-8")
    (folder / "shards").mkdir()
    for number in range(2):
        with tarfile.open(folder / f"shards/train-{number}.tar", "w") as archive:
            for path in sorted((folder / "photos").iterdir()):
                archive.add(path, arcname=path.name)
    (folder / "names.txt").write_text("photos/dog.jpg\nphotos/cow.jpg\n", encoding="utf-8")
    (folder / "questions.jsonl").write_text('{"path": "photos/dog.jpg", "prompt": "A"}\n', encoding="utf-8")
    (folder / "sentences.txt").write_text("A dog runs.\nTwo dogs run on a beach.\n" * 40, encoding="utf-8")
    return folder


def test_the_readme_shows_all_four_commands_and_the_python_face() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"caption", "train", "inspect", "bench"}
    assert PYTHON


# Hub ids of the examples, and the small models that stand there in tests.
HUB = {
    "Salesforce/blip-image-captioning-base": "blip",
    "microsoft/git-base-coco": "git",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm",
}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub as if these models had been fetched."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(ROOT / "tests/checkpoint/families"))
    from hf.build import build

    cache = tmp_path_factory.mktemp("hub")
    for name, family in HUB.items():
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0" * 40)
        build(family, repository / "snapshots" / ("0" * 40))
    return cache


@pytest.fixture(autouse=True)
def offline(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hub ids come from that cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    line, _, stdin = command.partition(" < ")
    if stdin:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(stdin).read_bytes())))
    words = shlex.split(line)
    assert main(words) == 0
    output = Path(words[words.index("--output") + 1]) if "--output" in words else None
    assert capfd.readouterr().out.strip() or (output and output.stat().st_size)


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_the_readme_runs(
    code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
