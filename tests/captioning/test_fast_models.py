"""Models laid out for speed write what plain ones write; models in 8 bits write the same alone and in a batch."""

from pathlib import Path

import pytest
import torch

from mmt_cli import Captioner
from mmt_cli.errors import UsageError
from mmt_cli.model import packing, processor
from mmt_cli.model.int8 import Int8Linear
from mmt_cli.model.packing import PackedLinear
from mmt_cli.model.processor import can_pack

PHOTOS = [Path(__file__).parent.parent / f"data/{name}.jpg" for name in ("dog", "cow", "rocket")]


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, ...]]:
    """Return what the model writes with its matrices as they are."""
    return written(Captioner.load("mini", device="cpu", trainable=True))


def written(captioner: Captioner, batch_size: int = 3) -> list[tuple[int, ...]]:
    return [caption.tokens for caption in captioner.caption(PHOTOS, batch_size=batch_size)]


def packed_in(captioner: Captioner) -> list[PackedLinear]:
    return [
        module for module in captioner.model.modules() if isinstance(module, PackedLinear) and module.weight.is_mkldnn
    ]


@pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN on this machine")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_packed_matrices_change_no_token(
    plain: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(packing, "_LEAST", {torch.float32: 1})
    monkeypatch.setattr(packing, "_LARGE", 1)
    monkeypatch.setattr(packing, "mkl_is_at_home", lambda: False)
    captioner = Captioner.load("mini", device="cpu")
    assert written(captioner, batch_size) == plain
    assert len(packed_in(captioner)) > 20 and captioner.model.head.projection.weight.is_mkldnn


def test_a_machine_without_the_kernels_writes_the_same(
    plain: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_onednn", lambda: False)
    captioner = Captioner.load("mini", device="cpu")
    assert written(captioner) == plain and not packed_in(captioner)


def test_a_model_to_be_trained_has_plain_matrices() -> None:
    modules = list(Captioner.load("mini", device="cpu", trainable=True).model.modules())
    assert not any(isinstance(module, PackedLinear) for module in modules)


def test_in_8_bits_a_caption_is_the_same_alone_and_in_a_batch(plain: list[tuple[int, ...]]) -> None:
    captioner = Captioner.load("mini", device="cpu", quantize="int8")
    assert sum(isinstance(module, Int8Linear) for module in captioner.model.modules()) > 20
    assert written(captioner) == written(captioner, batch_size=1)
    assert captioner.numbers == "int8 and float32"


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"quantize": "int4"}, "int4"),
        ({"quantize": "int8", "trainable": True}, "trained"),
    ],
)
def test_what_8_bits_do_not_go_with_is_refused(wanted: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Captioner.load("mini", device="cpu", **wanted)  # type: ignore[arg-type]
