"""Linear maps in oneDNN's layout: the same answers, and the plain matrix back whenever something else is wanted."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmt_cli.model import packing, processor
from mmt_cli.model.layers import ACTIVATIONS, Linear, QuickGELU
from mmt_cli.model.packing import PackedLinear, pack_linears
from mmt_cli.model.pages import FilePages
from mmt_cli.model.presets import preset
from mmt_cli.model.processor import can_pack
from mmt_cli.model.transformer import MultimodalTransformer, initialise

WIDE, NARROW = 1_024, 512  # a matrix just large enough
needs_kernels = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN on this machine")
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no bfloat16 kernels")),
]


def packed(activation=None, *, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    plain = nn.Linear(NARROW, WIDE, bias=bias).to(dtype).requires_grad_(False)
    return plain, PackedLinear(plain, activation, FilePages(), shared=False)


@pytest.fixture
def small_matrices_too(monkeypatch):
    monkeypatch.setattr(packing, "_LEAST", {torch.float32: 1, torch.bfloat16: 1})


@needs_kernels
@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_map_gives_what_the_plain_one_gives(monkeypatch, name, dtype, bias):
    activation = None if name is None else ACTIVATIONS[name]()
    plain, ours = packed(activation, dtype=dtype, bias=bias)
    monkeypatch.setattr(packing, "_LARGE", WIDE * NARROW)
    off = 0.02 if dtype is torch.bfloat16 else 1e-5
    across = torch.randn(3, NARROW, 9).to(dtype).transpose(1, 2)  # rows whose numbers do not lie side by side
    with torch.inference_mode():
        for x in (across.contiguous(), across, across[:, ::2], across[:1, :1], across[:2, :1], across[0, 0]):
            found = ours(x)
            wanted = functional.linear(x, plain.weight, plain.bias)
            wanted = wanted if activation is None else activation(wanted)
            assert ours.weight.is_mkldnn and found.dtype == dtype
            torch.testing.assert_close(found, wanted, rtol=off, atol=off)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7])
def test_few_rows_read_a_large_matrix_in_company_and_a_small_one_alone(monkeypatch, rows):
    monkeypatch.setattr(packing, "mkl_is_at_home", lambda: False)
    monkeypatch.setattr(packing, "has_tiles", lambda: False)
    plain, large = packed(nn.GELU())
    _, small = packed(nn.GELU())
    read = []
    for ours in (large, small):
        monkeypatch.setattr(
            ours, "_product", lambda x_MI, product=ours._product: read.append(len(x_MI)) or product(x_MI)
        )
    with torch.inference_mode():
        x = torch.randn(rows, NARROW)
        monkeypatch.setattr(packing, "_LARGE", WIDE * NARROW)
        found = [large(x)]
        monkeypatch.setattr(packing, "_LARGE", WIDE * NARROW + 1)
        found.append(small(x))
        wanted = functional.gelu(plain(x))
    assert read == [max(rows, 6), rows]
    for y in found:
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(
    ("at_home", "rows", "packs"),
    [(True, 7, False), (True, 8, True), (True, 256, True), (True, 257, False), (False, 1, True), (False, 257, True)],
)
def test_on_mkls_makers_processors_few_rows_and_very_many_are_no_reason_to_pack(monkeypatch, at_home, rows, packs):
    monkeypatch.setattr(packing, "mkl_is_at_home", lambda: at_home)
    _, ours = packed()
    with torch.inference_mode():
        ours(torch.randn(rows, NARROW))
        assert ours.weight.is_mkldnn == packs
        ours(torch.randn(8, NARROW))
        for fewer in (1, 0):
            assert ours(torch.randn(fewer, NARROW)).shape == (fewer, WIDE)
            assert ours.weight.is_mkldnn == (fewer > 0)


@needs_kernels
@pytest.mark.parametrize(
    "use",
    [
        lambda ours: ours.state_dict(),
        lambda ours: ours(torch.randn(9, NARROW)),
        lambda ours: ours.double().float(),
        lambda ours: ours.load_state_dict(ours.state_dict()),
    ],
    ids=["state", "gradients", "dtype", "loading"],
)
def test_whatever_else_is_done_with_it_brings_the_plain_matrix_back_bit_for_bit(use):
    plain, ours = packed()
    before = plain.weight.clone()
    with torch.inference_mode():
        ours(torch.randn(9, NARROW))
    assert ours.weight.is_mkldnn and sum(p.numel() for p in ours.parameters()) == WIDE * NARROW + WIDE
    use(ours)
    assert not ours.weight.is_mkldnn
    assert torch.equal(ours.weight, before)


@needs_kernels
def test_a_map_can_be_trained_after_it_has_been_packed():
    _, ours = packed()
    with torch.inference_mode():
        ours(torch.randn(9, NARROW))
    ours.unpack()
    ours.requires_grad_(True)
    ours(torch.randn(9, NARROW)).sum().backward()
    assert ours.weight.grad is not None


@needs_kernels
def test_a_tied_head_stays_tied(small_matrices_too):
    config = preset("tiny")
    model = MultimodalTransformer(config).eval().requires_grad_(False)
    initialise(model)
    before = {key: tensor.clone() for key, tensor in model.own_state().items()}
    pack_linears(model)
    with torch.inference_mode():
        model.head(torch.randn(2, 3, config.text.block.width))
    assert model.head.projection.weight.is_mkldnn
    after = model.own_state()
    assert model.head.projection.weight is model.text.tokens.weight
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_maps_that_are_trained_or_too_small_stay_as_they_are():
    model = nn.ModuleDict({"trained": nn.Linear(NARROW, WIDE), "small": nn.Linear(8, 8).requires_grad_(False)})
    pack_linears(model)
    assert type(model["trained"]) is nn.Linear and type(model["small"]) is nn.Linear


def test_a_machine_without_the_kernels_keeps_plain_maps(monkeypatch):
    monkeypatch.setattr(processor, "has_onednn", lambda: False)
    model = nn.ModuleDict({"map": Linear(NARROW, WIDE).requires_grad_(False)})
    pack_linears(model)
    assert type(model["map"]) is Linear


def test_quick_gelu_is_the_same_with_and_without_gradients():
    x = torch.randn(5, 7, requires_grad=True)
    kept = x.detach().clone()
    trained = QuickGELU()(x)
    trained.sum().backward()
    with torch.no_grad():
        assert torch.equal(QuickGELU()(x), trained)
    assert torch.equal(x, kept)
    gate = torch.sigmoid(1.702 * kept)
    torch.testing.assert_close(x.grad, gate + 1.702 * kept * gate * (1 - gate))


MEASURE = """
import sys, torch
from safetensors import safe_open
from torch import nn
from mmt_cli.model.packing import pack_linears
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
with safe_open(sys.argv[1], framework="pt") as file:
    layers = [nn.Linear(1, 1) for _ in file.keys()]
    for layer, name in zip(layers, file.keys()):
        layer.weight = nn.Parameter(file.get_tensor(name), requires_grad=False)
        layer.out_features, layer.in_features = layer.weight.shape
        layer.bias = None
model = nn.Sequential(*layers)
pack_linears(model)
size = sum(layer.weight.nbytes for layer in layers)
before = resident()
with torch.inference_mode():
    for layer in model:
        layer(torch.zeros(8, layer.in_features))
assert all(layer.weight.is_mkldnn for layer in model)
print((resident() - before) / size)
"""


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_packing_does_not_double_memory(tmp_path):
    from safetensors.torch import save_file

    save_file({f"w{n}": torch.randn(2_048, 1_024) for n in range(16)}, tmp_path / "w.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.3  # 2 where the file's pages stay
