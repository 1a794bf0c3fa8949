import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmt_cli.benchmark.layers import Stopwatch
from mmt_cli.benchmark.work import WorkCounter
from mmt_cli.captioning.stepper import build_stepper


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
    for layer in ("blocks.0", "blocks.2"):
        (prefill,), (step,) = found["prefill"].layers[layer], found["decode"].layers[layer]
        assert prefill.flops == block_flops(block, image + 2, image + 2)
        assert step.flops == block_flops(block, 1, image + 3)
    assert found["decode"].layers["head"][0].flops == 2 * block.width * model.config.text.vocab_size


def test_flops_are_those_that_torch_counts(model, tools):
    pixels, ids = tools.random_pixels(model.config, 2), tools.random_ids(2, 4)
    with torch.no_grad(), WorkCounter(model) as counter:
        model(ids, pixels)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
        model(ids, pixels)
    assert counter.mark().flops == torchs.get_total_flops() > 0


def test_bytes_are_those_of_the_weights_and_of_looked_up_rows_only(tools):
    model, found = count(tools, "tiny")
    row = 4 * model.config.text.block.width
    for phase, tokens in (("prefill", 2), ("decode", 1)):
        layers = found[phase].layers
        assert layers["blocks.1"][0].nbytes == nbytes(model.blocks[1])
        assert layers["head"][0].nbytes == nbytes(model.head)
        assert layers["text"][0].nbytes == 2 * tokens * row  # words and positions
    vision = model.vision
    assert found["vision"].total.nbytes == nbytes(vision)
    assert found["vision"].layers["vision.embedding"][0].nbytes == nbytes(vision.embedding)


def test_convolutions_read_all_their_weights_and_statistics(tools):
    model, found = count(tools, "mini")
    assert found["vision"].total.nbytes == nbytes(model.vision)
    assert found["vision"].layers["vision.features.stem"][0].nbytes == nbytes(model.vision.features.stem)


def test_step_with_a_cache_reads_no_weights_of_the_image_again(tools):
    model, found = count(tools, "mini")
    (prefill,), (step,) = found["prefill"].layers["blocks.0"], found["decode"].layers["blocks.0"]
    assert prefill.nbytes == nbytes(model.blocks[0])
    assert prefill.nbytes - step.nbytes == nbytes(model.blocks[0]["cross_attention"].inner.kv)


def test_counting_leaves_attention_as_it_was():
    before = torch.backends.cuda.flash_sdp_enabled()
    with WorkCounter(torch.nn.Linear(1, 1)):
        assert torch.backends.cuda.flash_sdp_enabled() != before
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_nothing_is_counted_outside(tools):
    layer = torch.nn.Linear(3, 5)
    counter = WorkCounter(layer)
    with torch.no_grad(), counter:
        layer(torch.zeros(2, 3))
    layer(torch.zeros(2, 3))
    assert (counter.mark().flops, counter.mark().nbytes) == (2 * 2 * 3 * 5, 4 * (15 + 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_follow_the_dtype(dtype):
    layer = torch.nn.Linear(3, 5).to(dtype)
    with WorkCounter(layer) as counter:
        layer(torch.zeros(2, 3, dtype=dtype))
    assert counter.mark().nbytes == dtype.itemsize * 20
