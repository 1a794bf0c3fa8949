"""Folders and hub ids of other families through every command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "checkpoint/families"))
from hf.build import build  # noqa: E402

PHOTOS = [str(ROOT / f"data/{name}.jpg") for name in ("dog", "cow")]
FAMILIES = ("git", "blip-vqa", "smolvlm", "florence2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a family's folder."""
    kept: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in kept:
            kept[family] = tmp_path_factory.mktemp("families") / family
            build(family, kept[family])
        return kept[family]

    return get


def records(mmt: Callable[..., Any], *arguments: str) -> list[dict[str, Any]]:
    done = mmt("caption", *PHOTOS, "-q", "-f", "jsonl", "--max-new-tokens", "6", *arguments)
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_caption_writes_a_record_for_each_photo(
    mmt: Callable[..., Any], folder: Callable[[str], Path], family: str
) -> None:
    first, second = records(mmt, "-m", str(folder(family)), "-p", "a photo of")
    assert first["model"].startswith(f"{family}@") and len(first["model"]) == len(family) + 13
    assert (first["tokens"], first["caption"]) != (second["tokens"], second["caption"])
    assert first["caption"].startswith("a photo of") == (family == "git"), "only captioners go on from the prompt"
    alone = [records(mmt, "-m", str(folder(family)), "-p", "a photo of", "-b", "1")[i]["tokens"] for i in (0, 1)]
    assert alone == [first["tokens"], second["tokens"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_shows_what_belongs_to_picture_and_text(
    mmt: Callable[..., Any], folder: Callable[[str], Path], family: str
) -> None:
    shown = json.loads(mmt("inspect", str(folder(family)), "-f", "json").out)
    found = {module["modality"] for module in shown["modules"]}
    wanted = {
        "git": {"connector"},
        "blip-vqa": {"cross"},
        "smolvlm": {"connector"},
        "florence2": {"connector", "cross"},
    }
    assert found == {"vision", "text", *wanted[family]}
    assert sum(module["bytes"] for module in shown["modules"]) == shown["bytes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_bench_times_it(mmt: Callable[..., Any], folder: Callable[[str], Path], family: str) -> None:
    short = ("-b", "1,2", "-r", "1", "--warmup", "0", "--gen-tokens", "2", "-q", "-f", "json")
    done = mmt("bench", "-m", str(folder(family)), *short)
    assert done.code == 0
    assert json.loads(done.out)["summary"]["images_per_s"] > 0


def test_images_are_kept_whole_where_asked(mmt: Callable[..., Any], folder: Callable[[str], Path]) -> None:
    model = str(folder("smolvlm"))
    split, whole = (records(mmt, "-m", model, *more) for more in ((), ("--no-split",)))
    assert [record["tokens"] for record in split] != [record["tokens"] for record in whole]
    refused = mmt("caption", PHOTOS[0], "-m", str(folder("git")), "--no-split")
    assert refused.code == 2 and "--no-split" in refused.err and len(refused.lines) == 1


def test_chat_models_are_told_something_first_and_others_are_not(
    mmt: Callable[..., Any], folder: Callable[[str], Path]
) -> None:
    model = str(folder("smolvlm"))
    silent, told = (records(mmt, "-m", model, *more) for more in ((), ("--system", "how many dogs are on the table?")))
    assert [record["logprob"] for record in silent] != [record["logprob"] for record in told]
    refused = mmt("caption", PHOTOS[0], "-m", str(folder("git")), "--system", "Be brief.")
    assert refused.code == 2 and "--system" in refused.err and len(refused.lines) == 1


def test_an_unknown_type_says_which_are_known(mmt: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused = mmt("caption", PHOTOS[0], "-m", str(tmp_path))
    assert refused.code == 5 and len(refused.lines) == 1
    for known in ("'bert'", "git", "blip", "vision-encoder-decoder", "idefics3", "smolvlm", "llava", "paligemma"):
        assert known in refused.err


def test_a_hub_id_comes_from_the_cache(
    mmt: Callable[..., Any], folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--small-git"
    for name, commit in (("main", "0" * 40), ("older", "1" * 40)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots").mkdir(exist_ok=True)
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder("git"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    [first, _] = records(mmt, "-m", "someone/small-git", "--offline")
    assert first["model"].startswith("small-git@")
    missing = mmt("caption", PHOTOS[0], "-m", "someone/small-git", "--offline", "--revision", "older")
    assert missing.code == 5 and "revision older" in missing.err and "--offline" in missing.err
    assert mmt("inspect", "someone/small-git", "--offline").code == 0
    wrong = mmt("caption", PHOTOS[0], "-m", str(folder("git")), "--revision", "main")
    assert wrong.code == 2 and "--revision main" in wrong.err
