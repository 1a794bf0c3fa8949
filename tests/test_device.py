"""Where a model runs, and what it computes in."""

import subprocess
import sys

import pytest
import torch

from mmt_cli.device import resolve_device, resolve_dtype, set_threads
from mmt_cli.errors import UsageError

FAULTS = """
import resource, sys, torch
from mmt_cli.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def use(times):
    for _ in range(times):
        torch.empty(16_000_000).fill_(1)
use(30)  # until the heap has its shape
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_auto_takes_float32_on_a_cpu_and_elsewhere_the_stored_dtype_or_bfloat16():
    assert resolve_dtype("auto", torch.device("cpu"), torch.float16) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda"), torch.float16) is torch.float16
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) is torch.float16


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", f"cuda:{torch.cuda.device_count()}", ""])
def test_a_device_that_is_not_here_is_wrong_usage_that_names_it(name):
    with pytest.raises(UsageError, match=f"--device {name}"):
        resolve_device(name)


def test_the_cpu_is_always_here():
    assert resolve_device("cpu") == torch.device("cpu")


def test_fewer_than_one_thread_is_wrong_usage():
    with pytest.raises(UsageError, match="--threads 0"):
        set_threads(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone is told")
def test_freed_memory_is_taken_again_without_page_faults():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], check=True, capture_output=True).stdout)
        for mode in ("kept", "given back")
    }
    assert faults["kept"] < 0.2 * faults["given back"]
