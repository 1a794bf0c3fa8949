"""Runs that are killed at any moment, and go on: every record is there once and in order."""

import random
import signal
import subprocess
import sys
import time

import pytest

from mmt_cli.captioning.writers import Layout, Record
from mmt_cli.errors import ImageError
from mmt_cli.inputs.encoding import to_bytes

KILLS = 12
ITEMS = 240
# Writes what is not there yet, a few items a batch, and says when it begins.
PROGRAM = """
import json, os, sys, time
from mmt_cli.captioning.output import OutputFile
from mmt_cli.captioning.writers import Layout

path, settings, lines = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
with open(lines, "rb") as file:
    items = file.read().decode("utf-8", "surrogateescape").split("\\0")
with OutputFile(path, layout=Layout(**settings), resume=True) as output:
    print("ready", flush=True)
    output.start({"model": "mini"})
    for number, item in enumerate(items):
        name, text = item.split("\\t", 1)
        if not output.take(name):
            output.write(text)
        if number % 5 == 4:
            output.commit()
            time.sleep(0.001)
"""


def text_of(number: int, layout: Layout) -> tuple[str, str]:
    # Every seventh item fails, and names come again.
    path = f'{number % 100}, "é\udcff".jpg'
    blank = {"path": path, "ms": 1.0, "model": "mini@0123456789ab"}
    if number % 7 == 3:
        return path, layout.lines(Record(**blank, error=ImageError("missing", "is not there,\nlook")))
    texts = [f'a "dog",\r\n{number}.{rank}' for rank in range(layout.captions_per_item)]
    return path, "".join(layout.lines(Record(**blank, caption=text, tokens=(1, 2))) for text in texts)


@pytest.mark.parametrize(
    "layout",
    [Layout(kind="jsonl"), Layout(kind="tsv"), Layout(kind="csv"), Layout(kind="jsonl", captions_per_item=3)],
    ids=lambda layout: f"{layout.kind}-{layout.captions_per_item}",
)
def test_a_dozen_kills_leave_every_record_once_and_in_order(tmp_path, layout):
    items = [text_of(number, layout) for number in range(ITEMS)]
    (tmp_path / "items").write_bytes(to_bytes("\0".join(f"{path}\t{text}" for path, text in items)))
    settings = f'{{"kind": "{layout.kind}", "captions_per_item": {layout.captions_per_item}}}'
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), settings, str(tmp_path / "items")]
    rng, kills = random.Random(layout.kind), 0
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            if kills < KILLS:
                time.sleep(rng.uniform(0, 0.008))
                child.kill()
            code = child.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert (tmp_path / "out").read_bytes() == to_bytes(layout.header() + "".join(text for _, text in items))
    assert kills >= KILLS // 2, "it was done before it could be killed"
