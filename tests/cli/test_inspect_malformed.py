"""Malformed and hostile files: one line, in little time and memory, and nothing that steers a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
DATA = Path(os.environ.get("MMT_TEST_DATA", ""), "torture")
MOST = 16 * 2**20  # bytes of a header
SECONDS, MEBIBYTES = 10, 512
# What can steer a terminal: control bytes but the newline, C1 control characters, bidi marks.
STEERING = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]")
# getrusage counts the parent's memory before the start of a program, too; this counts the program's own.
RUN = """
import sys, time
from mmt_cli.cli.app import main
code = main(sys.argv[2:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
open(sys.argv[1], "w").write(f"{peak} {time.process_time()}")
sys.exit(code)
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended; `lines` are those on stderr."""

    code: int
    lines: list[str]


@pytest.fixture
def inspected(tmp_path: Path) -> Callable[..., Ended]:
    """Return a function that runs `mmt inspect` on a terminal and holds it to the bounds."""

    def run(*arguments: str) -> Ended:
        master, terminal = pty.openpty()
        shown = bytearray()

        def read() -> None:
            while True:
                try:
                    part = os.read(master, 65536)
                except OSError:  # the other end is closed
                    return
                shown.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            done = subprocess.run(
                [sys.executable, "-c", RUN, str(tmp_path / "spent"), "inspect", *arguments],
                stdout=terminal,
                stderr=subprocess.PIPE,
                env=os.environ | {"NO_COLOR": "1"},
                timeout=6 * SECONDS,  # of the clock, where others are busy, too
            )
        finally:
            os.close(terminal)
            reader.join()
            os.close(master)
        kibibytes, seconds = (tmp_path / "spent").read_text().split()
        assert float(seconds) <= SECONDS
        assert int(kibibytes) <= MEBIBYTES * 1024
        assert not STEERING.findall(bytes(shown).replace(b"\r\n", b"\n") + done.stderr)
        ended = Ended(code=done.returncode, lines=done.stderr.decode().splitlines())
        assert ended.code in (0, 5)
        assert len(ended.lines) == (ended.code == 5)
        return ended

    return run


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


A = f'"a":{json.dumps(tensor())}'


def filled(before: str, after: str, part: str) -> str:
    """Return a header of nearly the most bytes, full of parts; `%x` in them is their number."""
    parts, size = [], len(before) + len(after)
    for index in range(MOST):
        parts.append(part.replace("%x", f"{index:x}"))
        size += len(parts[-1]) + 1
        if size > MOST - 100:
            break
    return before + ",".join(parts) + after


def shaped(shape: str) -> str:
    return f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'


# Name → the header, and whether it is to be refused.
HOSTILE: dict[str, tuple[Callable[[], str], bool]] = {
    "header of 100 MB": (lambda: f"{{{A}{' ' * 100_000_000}}}", True),
    "header of blanks": (lambda: f"{{{A}{' ' * (MOST - 100)}}}", False),
    "millions of whole numbers": (lambda: filled('{"a":{"dtype":"F32","shape":[', "]}}", "1"), True),
    "millions of fractions": (lambda: filled('{"a":{"dtype":"F32","shape":[', "]}}", "1.5"), True),
    "millions of texts": (lambda: filled('{"a":{"dtype":"F32","shape":[', "]}}", '"éa"'), True),
    "a million keys": (lambda: filled("{", "}", '"%x":1'), True),
    "a million keys of a tensor": (lambda: filled('{"a":{', "}}", '"%x":1'), True),
    "a million entries of metadata": (lambda: filled('{"__metadata__":{', f"}},{A}}}", '"%x":""'), False),
    "metadata of many megabytes": (lambda: '{"__metadata__":{"a":"' + "\\u001bx" * 2_000_000 + '"},' + A + "}", False),
    "control bytes": (
        lambda: (
            '{"__metadata__":{"\\u001b]0;x\\u0007":"\\u009b31m\\u202e\\r\\n\\u0000[bold]"},"\\u001b[2J\\u202e\\u007f":'
            + json.dumps(tensor())
            + "}"
        ),
        False,
    ),
    "deep lists": (lambda: f'{{"a":{"[" * 390_000}{"]" * 390_000}}}', True),
    "deep objects": (lambda: '{"a":' * 390_000 + "1" + "}" * 390_000, True),
    "deeper than bytes are counted": (lambda: "[" * (MOST - 100), True),
    "a size of 2^63": (lambda: json.dumps({"a": tensor(shape=[2**63], data_offsets=[0, 2**65])}), True),
    "an offset of 2^64": (lambda: json.dumps({"a": tensor(shape=[0], data_offsets=[2**64, 2**64])}), True),
    "a number of 5000 digits": (lambda: shaped("9" * 5000), True),
    "a number of 4000 digits": (lambda: shaped("9" * 4000), True),
    "no number": (lambda: shaped("NaN"), True),
    "overlapping": (lambda: json.dumps({"a": tensor(), "b": tensor(data_offsets=[2, 6])}), True),
    "a hole": (lambda: json.dumps({"a": tensor(), "b": tensor(data_offsets=[8, 12])}), True),
    "a key twice": (lambda: f"{{{A},{A}}}", True),
    "a key of metadata twice": (lambda: f'{{"__metadata__":{{"x":"1","x":"2"}},{A}}}', True),
    "half a character": (lambda: f'{{"\\ud800":{json.dumps(tensor())}}}', True),
    "negative offsets": (lambda: json.dumps({"a": tensor(data_offsets=[-4, 0])}), True),
    "a name of 15 MB": (lambda: json.dumps({"x" * (15 * 2**20): tensor()}), False),
    "a name of dots": (lambda: json.dumps({"." * (3 * 2**20): tensor()}), False),
    "rank 100,000": (lambda: shaped(",".join("1" * 100_000)), True),
    "100,000 empty tensors": (
        lambda: json.dumps({f"t{i}": tensor(shape=[0], data_offsets=[0, 0]) for i in range(99_999)}),
        False,
    ),
    "a list": (lambda: "[]", True),
    "nothing": (lambda: "null", True),
}
# What follows the header, where it is not four bytes.
DATA_BYTES = {"overlapping": 6, "a hole": 12, "a size of 2^63": 0, "an offset of 2^64": 0, "100,000 empty tensors": 0}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_takes_little(inspected: Callable[..., Ended], tmp_path: Path, name: str) -> None:
    made, refused = HOSTILE[name]
    raw = made().encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(DATA_BYTES.get(name, 4)))
    assert (inspected(str(path)).code == 5) == refused


def verdicts(kind: str) -> Iterator[tuple[Path, bool]]:
    """Yield malformed files, and whether the library refuses them."""
    table = DATA / kind / "VERDICTS.txt"
    for line in table.read_text(errors="replace").splitlines() if table.is_file() else ():
        name, _, verdict, *_ = line.split()
        for path in (DATA / kind).glob(f"{name}.*"):
            yield path, verdict == "ERR"


def named(value: object) -> str:
    return value.stem if isinstance(value, Path) else ""


@pytest.mark.parametrize("look", [(), ("--check",), ("--stats",)], ids=["header", "check", "stats"])
@pytest.mark.parametrize(("path", "refused"), [*verdicts("safetensors_bad")], ids=named)
def test_what_safetensors_refuses_is_refused(
    inspected: Callable[..., Ended], path: Path, refused: bool, look: tuple[str, ...]
) -> None:
    assert inspected(str(path), *look).code == 5 or not refused


@pytest.mark.parametrize("look", [("--check",), ("--tokens", "A dog runs.")], ids=["check", "tokens"])
@pytest.mark.parametrize(("path", "refused"), [*verdicts("tokenizer_bad")], ids=named)
def test_what_tokenizers_refuses_is_refused(
    inspected: Callable[..., Ended], path: Path, refused: bool, look: tuple[str, ...]
) -> None:
    assert inspected("mini", "--tokenizer", str(path), *look).code == 5 or not refused
