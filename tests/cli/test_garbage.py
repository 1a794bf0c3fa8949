"""No search for garbage while a command starts, captions one image, or ends; and one as ever in between."""

import gc
import subprocess
import sys

import pytest

from mmt_cli.cli import caption_setup, garbage
from mmt_cli.cli.app import main
from mmt_cli.errors import UsageError

AT_THE_END = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from mmt_cli.cli.app import main
sys.argv[1:] = ["--version"]
raise SystemExit(main())
"""


def test_it_is_as_it_was_afterwards_also_where_it_was_off_before():
    assert gc.isenabled()
    with garbage.left_alone():
        with garbage.left_alone():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("paths", [["a.jpg"], ["a.jpg", "b.jpg"]])
def test_a_model_is_loaded_without_it_and_one_image_captioned_too(monkeypatch, tmp_path, paths):
    seen = []

    def load(request):
        seen.append(gc.isenabled())
        return object()

    def run_options(*_, **__):
        seen.append(gc.isenabled())
        raise UsageError("enough")

    monkeypatch.setattr(caption_setup, "load", load)
    monkeypatch.setattr(caption_setup, "run_options", run_options)
    assert main(["caption", *(str(tmp_path / path) for path in paths)]) == 2
    assert seen == [False, len(paths) > 1]
    assert gc.isenabled()


def test_a_process_ends_without_it():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True"
