"""From the start of a process to its first caption, as a user of `mmt caption` waits for it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import mmt_cli
from mmt_cli.benchmark.layers import MILLISECONDS
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.errors import UsageError, shown

COLD_START = "cold start"


def cold_starts(reference: str, image: bytes | Path, options: BenchOptions, gen_tokens: int) -> list[float]:
    """Return the milliseconds from the start of each of several processes to the line with its caption.

    The files are in the system's cache: they have just been read.

    Args:
        reference: of a model with a tokenizer.
        image: what is captioned.
        options: how many processes, where and in what they compute.
        gen_tokens: length of the caption.

    Raises:
        UsageError: the process failed.
    """
    with _as_file(image) as path:
        return [_start(_command(reference, path, options, gen_tokens)) for _ in range(options.cold_starts)]


@contextmanager
def _as_file(image: bytes | Path) -> Iterator[Path]:
    if isinstance(image, Path):
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="mmt-bench-") as folder:
        path = Path(folder) / "image.jpg"
        path.write_bytes(image)
        yield path


def _command(reference: str, image: Path, options: BenchOptions, gen_tokens: int) -> list[str]:
    length = str(gen_tokens)
    given = {
        "--model": reference,
        "--max-new-tokens": length,
        "--min-new-tokens": length,
        "--num-beams": "1",
        "--device": options.device,
        "--dtype": options.dtype,
        "--threads": str(torch.get_num_threads()),
        **({"--revision": options.hub.revision} if options.hub.revision else {}),
        **({"--quantize": options.quantize} if options.quantize else {}),
    }
    flags = ["--no-stop-loops", "--quiet", *(["--offline"] if options.hub.offline else [])]
    pairs = [word for pair in given.items() for word in pair]
    return [sys.executable, "-m", "mmt_cli", "caption", *pairs, *flags, "--", str(image)]


def _start(command: list[str]) -> float:
    package = str(Path(mmt_cli.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    started = time.perf_counter()
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        done = time.perf_counter()
        _, errors = process.communicate()
    if process.returncode or not line:
        said = shown(errors.decode("utf-8", "replace").strip().rpartition("\n")[2])
        what = f"mmt caption failed in a process of its own (exit {process.returncode}, {said})"
        raise UsageError(f"{what}; --cold-starts 0 goes without")
    return (done - started) * MILLISECONDS
