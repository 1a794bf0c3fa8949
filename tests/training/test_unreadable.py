"""Images that turn out to be broken when the model is to see them: passed over as far as allowed, and no step lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmt_cli.errors import DataError
from mmt_cli.training.events import Noted, Stepped
from mmt_cli.training.findings import BrokenDataError
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.tasks.captions import CaptionTask


def options(squares: Path, out: str, **changes: Any) -> TrainOptions:
    """A run that saves nothing by itself before its end."""
    defaults: dict[str, Any] = {"preset": "tiny", "steps": 12, "batch_size": 3, "save_every": 100, "warmup": 2}
    defaults |= {"lr": 5e-3, "device": "cpu", "augment": ("flip",), "seed": 1}  # whose first batch can be read
    return TrainOptions(data=(str(squares),), out=squares.parent / out, **{**defaults, **changes})


def weights(squares: Path, out: str) -> bytes:
    return (squares.parent / out / "model.safetensors").read_bytes()


@pytest.fixture
def cut(squares: Path) -> dict[Path, bytes]:
    """Two of the twelve images, cut in half; what they were."""
    whole = {squares / f"{index}.png": (squares / f"{index}.png").read_bytes() for index in (4, 7)}
    for path, data in whole.items():
        path.write_bytes(data[: len(data) // 2])
    return whole


def run(given: TrainOptions) -> tuple[list[Any], DataError | None]:
    """Return what happens, and what ends the run before its time."""
    events = []
    try:
        for event in Trainer(given).run():
            events.append(event)  # noqa: PERF402 — what came before an error counts
    except DataError as error:
        return events, error
    return events, None


def notes(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Noted)]


def test_images_that_cannot_be_read_are_told_once_and_others_take_their_place(
    squares: Path, cut: dict[Path, bytes]
) -> None:
    events, ended = run(options(squares, "out", max_errors="2"))
    assert ended is None
    assert sum(isinstance(event, Stepped) for event in events) == 12  # three epochs
    told = sorted(notes(events))
    assert [str(path) in line for path, line in zip(cut, told, strict=True)] == [True, True]
    assert all(line.endswith("; the next one takes its place") for line in told)
    assert "- entries left out: 2 broken" in (squares.parent / "out/README.md").read_text(encoding="utf-8")


def test_a_run_that_goes_on_passes_over_the_same_images(squares: Path, cut: dict[Path, bytes]) -> None:
    run(options(squares, "whole", max_errors="2"))
    events = Trainer(options(squares, "cut", max_errors="2", save_every=1)).run()
    next(event for event in events if isinstance(event, Stepped) and event.step == 8)
    events.close()  # type: ignore[attr-defined]
    run(options(squares, "cut", max_errors="2", save_every=1, resume="auto"))
    assert weights(squares, "cut") == weights(squares, "whole")


@pytest.mark.parametrize(("max_errors", "code"), [(None, 5), ("1", 4)])
def test_more_than_allowed_end_the_run_and_no_step_is_lost(
    squares: Path, cut: dict[Path, bytes], max_errors: str | None, code: int
) -> None:
    events, ended = run(options(squares, "out", max_errors=max_errors))
    assert isinstance(ended, BrokenDataError)
    assert ended.exit_code == code
    done = sum(isinstance(event, Stepped) for event in events)
    assert 0 < done < 4
    assert notes(events)[-1] == f"step {done} is saved; go on with --resume auto when the data are mended"
    again, ended = run(options(squares, "out", max_errors="2", resume="auto"))
    assert ended is None
    assert sum(isinstance(event, Stepped) for event in again) == 12 - done


def test_the_first_batch_with_one_image_too_many_fails_though_a_later_one_was_read_before(
    squares: Path, cut: dict[Path, bytes]
) -> None:
    task = CaptionTask(options(squares, "out"))
    list(task.prepare())
    [place] = [index for index in range(12) if task.examples[index].key.endswith("7.png")]
    for epoch in (1, 0):
        with pytest.raises(BrokenDataError):
            task.batch([place], epoch)


def test_a_mended_image_is_seen_as_if_it_had_never_been_broken(squares: Path, cut: dict[Path, bytes]) -> None:
    _, ended = run(options(squares, "out"))
    assert "mend it, or allow for it with --max-errors" in str(ended)
    for path, data in cut.items():
        path.write_bytes(data)
    run(options(squares, "out", resume="auto"))
    run(options(squares, "whole"))
    assert weights(squares, "out") == weights(squares, "whole")


def test_where_all_images_are_gone_the_run_ends(squares: Path) -> None:
    trainer = Trainer(options(squares, "out", max_errors="100%"))
    for path in squares.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image can be read any more \(training images 12\)"):
        list(trainer.run())


def test_a_validation_image_that_cannot_be_read_loses_no_step(squares: Path, cut: dict[Path, bytes]) -> None:
    [(path, data), _] = cut.items()
    (squares / "val.jsonl").write_text(json.dumps({"image": path.name, "caption": "A square."}), encoding="utf-8")
    val = {"val": (str(squares / "val.jsonl"),), "eval_every": 4, "max_errors": "2"}
    events, ended = run(options(squares, "out", **val))
    assert path.name in str(ended)
    assert notes(events)[-1].startswith("step 4 is saved")
    path.write_bytes(data)
    assert run(options(squares, "out", **val, resume="auto"))[1] is None
    lines = (squares.parent / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line["step"] for line in map(json.loads, lines) if line["kind"] == "eval"] == [4, 8, 12]
