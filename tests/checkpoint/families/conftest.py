"""Puts the helpers in `hf/` where tests of this folder can import them, and keeps what they build."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The functions below import from here, so that tests of other things in this folder need not wait for transformers.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small matrices be packed as large ones are: what is compared with transformers is what users run."""
    import torch

    from mmt_cli.model import packing

    monkeypatch.setattr(packing, "_LEAST", {torch.float32: 1})
    monkeypatch.setattr(packing, "_LARGE", 1)
    monkeypatch.setattr(packing, "mkl_is_at_home", lambda: False)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that builds a family's small model, once for the same changes; see `hf.build.build`."""
    from hf.build import build

    kept: dict[str, Any] = {}

    def get(family: str, seed: int = 0, **changes: Any) -> Any:
        key = repr((family, seed, sorted(changes.items())))
        if key not in kept:
            kept[key] = build(family, tmp_path_factory.mktemp(family), seed, **changes)
        return kept[key]

    return get


@pytest.fixture(scope="session")
def captions(built: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that captions 20 pictures together with transformers, once for the same question."""
    from hf.images import photos
    from hf.reference import reference

    kept: dict[str, Any] = {}

    def get(family: str, prompt: str | None, seed: int = 0, **options: Any) -> Any:
        key = repr((family, prompt, seed, sorted(options.items())))
        if key not in kept:
            kept[key] = reference(built(family, seed), photos(20), prompt, together=True, **options)
        return kept[key]

    return get
