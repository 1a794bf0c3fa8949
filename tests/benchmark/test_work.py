import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmt_cli.benchmark.layers import Stopwatch
from mmt_cli.benchmark.work import WorkCounter
from mmt_cli.captioning.stepper import build_stepper
from mmt_cli.model import kernel_full, packing
from mmt_cli.model.int8 import Int8Embedding, OneDnnProduct, PlainProduct, can_multiply
from mmt_cli.model.processor import can_pack


def count(tools, name):
    """Return the work of each layer in prefill (2 tokens) and the decode step after it, and the model."""
    model = tools.build_model(tools.small_config(name))
    counter = WorkCounter(model)
    watch = Stopwatch(counter)
    pixels = tools.random_pixels(model.config, 1)
    with torch.no_grad(), counter, watch.watching(model):
        with watch.phase("vision"):
            image_BND = model.vision(pixels)
        image_BND = model.connector(image_BND)
        stepper = build_stepper(model, image_BND, [[1, 2]], 3)
        with watch.phase("prefill"):
            stepper.start()
        with watch.phase("decode"):
            stepper.step(torch.tensor([3]))
    return model, {phase: samples[0] for phase, samples in watch.samples.items()}


def nbytes(module):
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def block_flops(block, queries, keys):
    width, mlp = block.width, block.mlp_width
    linear = 2 * queries * width * (3 * width + width + 2 * mlp)
    return linear + 2 * 2 * queries * keys * width


def test_flops_are_those_of_every_product_attention_included(tools):
    model, found = count(tools, "tiny")
    block, image = model.config.text.block, model.config.vision.num_tokens
    of_image = 2 * image * block.width * 2 * block.mlp_width  # in an MLP: the last block's output for it is not read
    for layer, spared in (("blocks.0", 0), ("blocks.2", of_image)):
        (prefill,), (step,) = found["prefill"].layers[layer], found["decode"].layers[layer]
        assert prefill.flops == block_flops(block, image + 2, image + 2) - spared
        assert step.flops == block_flops(block, 1, image + 3)
    assert found["decode"].layers["head"][0].flops == 2 * block.width * model.config.text.vocab_size


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no bfloat16 kernels")
def test_what_only_speeds_up_is_no_work(tools, monkeypatch):
    """Packing, rows that keep one row company, and attention by whole products, whose keys no weights are."""
    monkeypatch.setattr(packing, "_LEAST", {torch.bfloat16: 1})
    monkeypatch.setattr(packing, "_LARGE", 1)
    monkeypatch.setattr(kernel_full, "has_small_products", lambda dtype: False)
    model = tools.build_model(tools.small_config("tiny")).bfloat16()
    pixels, ids = tools.random_pixels(model.config, 1).bfloat16(), tools.random_ids(1, 1)

    def work():
        with torch.inference_mode(), WorkCounter(model) as counter:
            model(ids, pixels)
        return counter.work

    plain = work()
    packing.pack_linears(model)
    with torch.inference_mode():
        model(ids, pixels)
    found = work()
    assert (found.flops, found.nbytes) == (plain.flops, plain.nbytes)


def test_flops_are_those_that_torch_counts(model, tools):
    pixels, ids = tools.random_pixels(model.config, 2), tools.random_ids(2, 4)
    with torch.no_grad(), WorkCounter(model) as counter:
        model(ids, pixels)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
        model(ids, pixels)
    assert counter.work.flops == torchs.get_total_flops() > 0


def test_bytes_are_those_of_the_weights_and_of_looked_up_rows_only(tools):
    model, found = count(tools, "tiny")
    row = 4 * model.config.text.block.width
    for phase, tokens in (("prefill", 2), ("decode", 1)):
        layers = found[phase].layers
        keys = model.config.vision.num_tokens + (2 if phase == "prefill" else 3)
        assert layers["blocks.1"][0].nbytes == nbytes(model.blocks[1]) + 2 * keys * row
        assert layers["head"][0].nbytes == nbytes(model.head)
        assert layers["text"][0].nbytes == 2 * tokens * row  # words and positions
    vision = model.vision
    keys = 4 * model.config.vision.block.width * model.config.vision.num_tokens
    assert found["vision"].total.nbytes == nbytes(vision) + 2 * keys * len(vision.blocks)
    assert found["vision"].layers["vision.embedding"][0].nbytes == nbytes(vision.embedding)


def test_convolutions_read_all_their_weights_and_statistics(tools):
    model, found = count(tools, "mini")
    assert found["vision"].total.nbytes == nbytes(model.vision)
    assert found["vision"].layers["vision.features.stem"][0].nbytes == nbytes(model.vision.features.stem)


def test_step_with_a_cache_reads_no_weights_of_the_image_again(tools):
    model, found = count(tools, "mini")
    (prefill,), (step,) = found["prefill"].layers["blocks.0"], found["decode"].layers["blocks.0"]
    key = 2 * 4 * model.config.text.block.width  # with its value
    read = prefill.nbytes - key * (2 + model.config.num_image_tokens)
    assert read == nbytes(model.blocks[0])
    step_read = step.nbytes - key * (3 + model.config.num_image_tokens)
    assert read - step_read == nbytes(model.blocks[0]["cross_attention"].inner.kv)


def flops_of(work):
    with WorkCounter(torch.nn.Linear(1, 1)) as counter:
        work()
    return counter.work.flops


ATTENTION = {
    "plain": {},
    "bool mask": {"attn_mask": torch.ones(5, 7, dtype=torch.bool)},
    "float mask": {"attn_mask": torch.zeros(5, 7)},
    "causal": {"is_causal": True},
    "few key heads": {"enable_gqa": True},
}


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_counts_the_same_by_any_kernel_forward_and_backward(kind, backend):
    options = ATTENTION[kind]
    q_BHQE = torch.randn(2, 4, 5, 8, requires_grad=True)
    k_BHKE, v_BHKE = (torch.randn(2, 2 if "enable_gqa" in options else 4, 7, 8, requires_grad=True) for _ in "kv")
    outputs = []

    def forward():
        with sdpa_kernel(backend):
            outputs.append(functional.scaled_dot_product_attention(q_BHQE, k_BHKE, v_BHKE, **options))

    product = 2 * 2 * 4 * 5 * 7 * 8
    assert flops_of(forward) == 2 * product
    assert flops_of(lambda: outputs[0].sum().backward()) == 4 * product
    with torch.no_grad():
        assert flops_of(forward) == 2 * product


def test_fused_attention_counts_values_of_another_width():
    q_BHQE, k_BHKE, v_BHKE = (torch.empty(2, 4, *shape, device="meta") for shape in ((5, 8), (7, 8), (7, 16)))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention  # a GPU's; here no more than shapes
    assert flops_of(lambda: attend(q_BHQE, k_BHKE, v_BHKE, None, False)) == 2 * 2 * 4 * 5 * 7 * (8 + 16)


A, B, X, VECTOR = torch.ones(3, 4), torch.ones(4, 5), torch.ones(2, 3, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda: A @ B, 2 * 3 * 4 * 5),
        (lambda: X @ B, 2 * 2 * 3 * 4 * 5),
        (lambda: A @ VECTOR, 2 * 3 * 4),
        (lambda: X @ VECTOR, 2 * 2 * 3 * 4),
        (lambda: torch.addmm(torch.ones(5), A, B), 2 * 3 * 4 * 5),
        (lambda: torch.bmm(X, X.mT), 2 * 2 * 3 * 4 * 3),
        (lambda: torch.baddbmm(torch.ones(2, 3, 3), X, X.mT), 2 * 2 * 3 * 4 * 3),
        (lambda: torch.einsum("bij,jk->bik", X, B), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.einsum("bij,bik->bjk", X, X), 2 * 2 * 3 * 4 * 4),
        (lambda: functional.linear(X, B.T, torch.ones(5)), 2 * 2 * 3 * 4 * 5),
        (lambda: functional.conv2d(torch.ones(1, 4, 6, 6), torch.ones(4, 2, 3, 3), groups=2), 2 * 16 * 4 * 2 * 9),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_products_count_two_for_each_term(product, expected, grad):
    with torch.set_grad_enabled(grad):
        assert flops_of(product) == expected


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
@pytest.mark.parametrize("wanted", [True, False])
def test_convolution_has_as_many_flops_for_each_of_its_gradients_as_forward(kind, groups, wanted):
    layer = kind(4, 8, 3, stride=2, groups=groups)
    x = torch.randn(2, 4, 9, 9, requires_grad=wanted)
    outputs = []
    forward = flops_of(lambda: outputs.append(layer(x)))
    assert flops_of(lambda: outputs[0].sum().backward()) == (1 + wanted) * forward > 0


def test_backward_counts_what_torch_counts(tools):
    model = tools.build_model(tools.small_config("tiny")).requires_grad_(True)
    pixels, ids = tools.random_pixels(model.config, 2), tools.random_ids(2, 4)
    with WorkCounter(model) as counter:
        model(ids, pixels).sum().backward()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
        model(ids, pixels).sum().backward()
    assert counter.work.flops == torchs.get_total_flops() > 0


def test_weights_repeated_along_the_batch_are_read_once():
    layer = torch.nn.Linear(4, 5, bias=False)
    with torch.no_grad(), WorkCounter(layer) as counter:
        torch.bmm(X, layer.weight.T.expand(2, 4, 5))
    assert counter.work.nbytes == 4 * 20


def test_optimizer_reads_its_weights():
    layer = torch.nn.Linear(4, 5)
    layer(A).sum().backward()
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    optimizer.step()  # the first one makes its state
    with WorkCounter(layer) as counter:
        optimizer.step()
    assert (counter.work.flops, counter.work.nbytes) == (0, 4 * 25)


def test_inference_mode_where_operations_come_whole_counts_the_same(model, tools):
    pixels, ids = tools.random_pixels(model.config, 2), tools.random_ids(2, 4)
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), WorkCounter(model) as counter:
            model(ids, pixels)
        found.append((counter.work.flops, counter.work.nbytes))
    assert found[0] == found[1]


@pytest.mark.parametrize("groups", [1, 8])
def test_packed_convolutions_count_as_plain_ones(groups):
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 8 // groups, 3, 3)
    how = [1, 1], [2, 2], [1, 1], groups
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
    skip = torch.randn(2, 8, 5, 5)
    with WorkCounter(torch.nn.Identity()) as plain:
        torch.nn.functional.conv2d(x, weight, None, 2, 1, groups=groups)
    with WorkCounter(torch.nn.Identity()) as fused:
        torch.ops.mkldnn._convolution_pointwise(x, packed, None, *how, "none", [], "")
        torch.ops.mkldnn._convolution_pointwise.binary(x, skip, packed, None, *how, "add", 1.0, None, [], None)
    assert fused.work.flops == 2 * plain.work.flops > 0


def test_packed_weights_count_as_those_they_were_made_of():
    weight, x = torch.ones(6, 4), torch.ones(3, 4)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 3)
    with torch.inference_mode(), WorkCounter(torch.nn.Linear(1, 1)) as counter:
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    assert (counter.work.flops, counter.work.nbytes) == (2 * 3 * 4 * 6, 4 * 24)


@pytest.mark.parametrize("kind", [PlainProduct, *([OneDnnProduct] if can_multiply() else [])])
def test_products_of_bytes_count_as_those_of_other_numbers(kind):
    table = Int8Embedding(torch.nn.Embedding(6, 4))
    product = kind(table.values_VD, table.scale_V1[:, 0])
    with torch.inference_mode(), WorkCounter(table) as counter:
        product(torch.ones(3, 4, dtype=torch.int8))
    assert (counter.work.flops, counter.work.nbytes) == (2 * 3 * 4 * 6, 24 + 4 * 6)  # and a scale an output


def test_peak_is_of_what_is_alive_at_once():
    with WorkCounter(torch.nn.Linear(1, 1)) as counter:
        start = counter.mark()
        kept = torch.ones(100)
        dropped = torch.ones(200) + 1
        middle = counter.mark()
        kept.add_(1)
        del dropped
        torch.ones(10).view(2, 5)
        end = counter.mark()
    assert counter.between(start, middle).peak == 4 * (100 + 200 + 200)
    assert counter.between(middle, end).peak == 4 * (100 + 200)  # in-place work and views make nothing
    assert counter.between(start, end).peak == 4 * (100 + 200 + 200)
    with WorkCounter(torch.nn.Linear(1, 1)) as counter:
        start = counter.mark()
        assert counter.between(start, counter.mark()).peak == 0
        VECTOR.mul_(1)  # was there before
        assert counter.between(start, counter.mark()).peak == 0


def test_nothing_is_counted_outside(tools):
    layer = torch.nn.Linear(3, 5)
    counter = WorkCounter(layer)
    with torch.no_grad(), counter:
        layer(torch.zeros(2, 3))
    layer(torch.zeros(2, 3))
    assert (counter.work.flops, counter.work.nbytes) == (2 * 2 * 3 * 5, 4 * (15 + 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_follow_the_dtype(dtype):
    layer = torch.nn.Linear(3, 5).to(dtype)
    with WorkCounter(layer) as counter:
        layer(torch.zeros(2, 3, dtype=dtype))
    assert counter.work.nbytes == dtype.itemsize * 20
