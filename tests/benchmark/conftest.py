"""Ceilings of a made-up machine: measuring those of the real one takes seconds."""

import pytest

from mmt_cli.benchmark import run
from mmt_cli.benchmark.ceilings import Ceilings

CEILINGS = Ceilings(flops_per_s=1e12, matrix_side=2048, bytes_per_s=1e11, buffer_bytes=1 << 30)


@pytest.fixture(autouse=True, scope="module")
def _quick_ceilings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measure_ceilings", lambda device, dtype, **_: CEILINGS)
        yield
