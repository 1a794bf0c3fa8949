import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection.summary import summarise
from mmt_cli.model.presets import PRESETS, preset
from mmt_cli.model.transformer import MultimodalTransformer


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> MultimodalTransformer:
    model = MultimodalTransformer(preset(name))
    save_checkpoint(
        folder,
        model,
        tokenizer=None,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="",
        dtype=dtype,
    )
    return model


def write_file(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write a safetensors file of zeros, float32, with names that a model of torch could not have."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """`mini` saved in bfloat16, which has batch-norm statistics, a tied head and cross-attention."""
    folder = tmp_path_factory.mktemp("models") / "my-mini"
    return save(folder, "mini", torch.bfloat16), folder


def test_seed_has_exactly_the_listings_parameters():
    assert summarise("preset:seed").total.parameters == 90_576_954


@pytest.mark.parametrize("name", PRESETS)
def test_preset_counts_what_torch_counts(name):
    with torch.device("meta"):
        model = MultimodalTransformer(preset(name))
    total = summarise(f"preset:{name}").total
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert total.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert total.nbytes == 4 * (total.parameters + buffers)
    assert total.dtype == "F32"


def test_checkpoint_says_the_same_as_its_preset_but_for_the_stored_dtype(mini):
    _, folder = mini
    saved, built = summarise(str(folder)), summarise("preset:mini")
    for depth in (1, 2, 9):
        rows = [[(p.name, p.modality, p.parameters) for p in summary.modules(depth)] for summary in (saved, built)]
        assert rows[0] == rows[1]
    assert (saved.model, saved.format, saved.metadata) == ("my-mini", "mmt", {"format": "pt"})
    assert saved.total.dtype == "BF16, F32"  # by size: matrices, then vectors
    assert saved.total.nbytes == sum(info.info.nbytes for info in saved.entries) < built.total.nbytes * 0.6


def test_tensor_file_is_read_like_its_folder(mini):
    _, folder = mini
    found = summarise(str(folder / "model.safetensors"))
    assert (found.format, found.total.parameters) == ("mmt", summarise(str(folder)).total.parameters)


def test_buffers_have_bytes_but_no_parameters(mini):
    model, folder = mini
    norms = [entry for entry in summarise(str(folder)).to_json(2)["tensors"] if "running_" in entry["name"]]
    assert len(norms) == sum(1 for _ in model.buffers()) > 0
    assert all(entry["parameters"] == 0 and entry["bytes"] == 4 * entry["shape"][0] for entry in norms)


def test_tied_head_counts_once():
    words = [e for e in summarise("preset:mini").entries if e.info.shape == (4_000, 384)]
    assert [entry.info.name for entry in words] == ["text.tokens.weight"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 9])
def test_modules_of_every_depth_add_up(depth):
    summary = summarise("preset:mini")
    modules, total = summary.modules(depth), summary.total
    assert sum(part.parameters for part in modules) == total.parameters
    assert sum(part.nbytes for part in modules) == total.nbytes
    assert len({part.name for part in modules}) == len(modules)
    for modality in summary.modalities():
        members = [part.parameters for part in modules if part.modality == modality.name]
        assert sum(members) == modality.parameters
    assert all(len(part.name.replace(".*", "").replace(".cross_attention", "").split(".")) <= depth for part in modules)


def test_modality_is_what_a_module_works_on():
    with torch.device("meta"):
        model = MultimodalTransformer(preset("mini"))
    expected = dict.fromkeys(("vision", "connector", "text", "cross"), 0)
    for name, parameter in model.named_parameters():
        top = "cross" if ".cross_attention." in name else name.split(".")[0]
        expected[top if top in expected else "text"] += parameter.numel()
    found = {part.name: part.parameters for part in summarise("preset:mini").modalities()}
    assert found == expected
    assert list(found) == list(expected)


def test_cross_attention_stands_beside_its_block():
    modules = {part.name: part for part in summarise("preset:mini").modules(2)}
    assert modules["blocks.0.cross_attention"].modality == "cross"
    assert modules["blocks.0"].modality == "text"
    assert "blocks.*.cross_attention" in {part.name for part in summarise("preset:mini").modules(1)}


def expert_names() -> list[str]:
    """Return the tensors of two blocks with experts, cross-attention and its own MLP, and of what is about them."""
    block = [
        "attention.norm.weight",
        *(f"attention.inner.{part}.{expert}.weight" for part in ("qkv", "out") for expert in ("image", "text")),
        "cross_attention.inner.kv.weight",
        "cross_attention.gate",
        "cross_mlp.inner.up.weight",
        "mlp.norm.weight",
        *(f"mlp.inner.{expert}.{part}.weight" for expert in ("image", "text") for part in ("up", "down")),
    ]
    return [
        "contrastive.image.weight",
        "contrastive.text.weight",
        "contrastive.temperature",
        "head.norm.weight",
        *(f"blocks.{index}.{name}" for index in range(2) for name in block),
        "fusion.gates.image.weight",
        "fusion.gates.text.bias",
        "text.tokens.weight",
        "connector.blocks.0.cross_attention.inner.q.weight",
        "connector.projection.weight",
        "vision.image.weight",
    ]


@pytest.fixture
def experts(tmp_path):
    """The summary of a folder whose header holds these names, each of another size, and the sizes."""
    config = {"format": "mmt", "format_version": 1, **preset("tiny").to_json()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = {name: 1 + index**2 for index, name in enumerate(expert_names())}
    write_file(tmp_path / "model.safetensors", {name: [size] for name, size in sizes.items()})
    return summarise(str(tmp_path)), sizes


def test_experts_count_as_what_they_read(experts):
    summary, sizes = experts

    def expected(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    cross = expected("cross_attention", "cross_mlp")
    vision = expected("qkv.image", "out.image", "mlp.inner.image", "contrastive.image", "vision.")
    connector = expected("fusion.gates", "connector.projection")
    assert {part.name: part.parameters for part in summary.modalities()} == {
        "vision": vision,
        "connector": connector,
        "text": sum(sizes.values()) - cross - vision - connector,
        "cross": cross,
    }


@pytest.mark.parametrize("depth", range(1, 9))
def test_rows_with_experts_add_up_and_have_one_modality_each(experts, depth):
    summary, sizes = experts
    modules = summary.modules(depth)
    assert sum(part.parameters for part in modules) == sum(sizes.values())
    assert len({part.name for part in modules}) == len(modules)
    assert None not in {part.modality for part in modules}
    for modality in summary.modalities():
        assert sum(part.parameters for part in modules if part.modality == modality.name) == modality.parameters


def test_experts_stand_beside_what_they_are_in(experts):
    summary, _ = experts

    def rows(depth: int, start: str) -> dict[str, str]:
        return {part.name: part.modality for part in summary.modules(depth) if part.name.startswith(start)}

    assert rows(1, "blocks") == {
        "blocks": "text",
        "blocks.*.cross_attention": "cross",
        "blocks.*.cross_mlp": "cross",
        "blocks.*.image": "vision",
    }
    assert rows(2, "blocks.1") == {
        "blocks.1": "text",
        "blocks.1.*.image": "vision",
        "blocks.1.cross_attention": "cross",
        "blocks.1.cross_mlp": "cross",
    }
    assert rows(3, "blocks.0.mlp") == {"blocks.0.mlp": "text", "blocks.0.mlp.*.image": "vision"}
    assert rows(4, "blocks.0.mlp") == {
        "blocks.0.mlp.norm": "text",
        "blocks.0.mlp.inner": "text",
        "blocks.0.mlp.inner.image": "vision",
    }
    assert rows(5, "blocks.0.mlp.inner") == {"blocks.0.mlp.inner.image": "vision", "blocks.0.mlp.inner.text": "text"}
    assert rows(1, "contrastive") == {"contrastive": "text", "contrastive.image": "vision"}
    assert rows(2, "vision") == {"vision.image": "vision"}


def test_fusion_stands_before_the_blocks_and_the_contrastive_head_at_the_end(experts):
    summary, _ = experts
    assert list(dict.fromkeys(part.name.split(".")[0] for part in summary.modules(1))) == [
        *("vision", "connector", "text", "fusion", "blocks", "head", "contrastive")
    ]


def test_directions_that_a_kernel_draws_once_are_no_parameters(tmp_path):
    kernel, linear = "blocks.0.attention.inner.kernel.projection", "connector.projection.weight"
    write_file(tmp_path / "x.safetensors", {kernel: [7], linear: [5]})
    summary = summarise(str(tmp_path / "x.safetensors"))
    assert {entry.info.name: entry.parameters for entry in summary.entries} == {kernel: 0, linear: 5}
    assert summary.total.nbytes == 4 * (7 + 5)


def test_names_of_a_bare_file_mean_nothing(tmp_path):
    write_file(tmp_path / "x.safetensors", {"blocks.0.image.weight": [2], "blocks.0.cross_attention.weight": [3]})
    assert [(p.name, p.modality, p.parameters) for p in summarise(str(tmp_path / "x.safetensors")).modules(1)] == [
        ("blocks", None, 5)
    ]


def test_settings_change_the_preset():
    found = summarise("preset:tiny", {"text.num_layers": 1})
    assert {part.name for part in found.modules(2) if part.name.startswith("blocks")} == {"blocks.0"}
    assert found.metadata == {"text.num_layers": "1"}


def test_settings_without_a_preset_are_refused_and_both_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "x.safetensors", {"a": [1]})
    for reference in ("mini", "x.safetensors"):
        with pytest.raises(UsageError, match=rf"--set text\.num_layers, model '{reference}'"):
            summarise(reference, {"text.num_layers": 1})


def test_modules_come_as_data_flows_and_numbers_by_value(tmp_path):
    assert [row.label for row in summarise("preset:mini").tree(2) if row.indent == 0] == [
        "vision",
        "connector",
        "text",
        "blocks",
        "head",
    ]
    blocks = [part.name for part in summarise("preset:mini").modules(4) if ".features.blocks." in part.name]
    assert blocks == [f"vision.features.blocks.{index}" for index in range(16)]


def test_tree_has_the_sum_above_its_parts():
    rows = summarise("preset:tiny").tree(2)
    for index, row in enumerate(rows):
        if row.is_sum:
            below = []
            for other in rows[index + 1 :]:
                if other.indent <= row.indent:
                    break
                below.append(other.part)
            assert row.part.parameters == sum(part.parameters for part in below) > 0
            assert row.part.nbytes == sum(part.nbytes for part in below)
    assert sum(row.part.parameters for row in rows if row.indent == 0) == summarise("preset:tiny").total.parameters


def test_module_with_tensors_of_its_own_shows_its_sum_first(tmp_path):
    write_file(tmp_path / "x.safetensors", {"a.weight": [2], "a.b.weight": [5]})
    rows = summarise(str(tmp_path / "x.safetensors")).tree(2)
    assert [(row.indent, row.label, row.part.parameters) for row in rows] == [(0, "a", 7), (1, "(own)", 2), (1, "b", 5)]


def test_seed_checkpoint_shows_our_modules_and_keeps_the_files_tensor_names(tmp_path):
    config = {"d_model": 8, "num_heads": 2, "num_layers": 2, "mlp_dim": 12, "vocab_size": 20, "img_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seed", **config}))
    layer = {
        "multi_head_attn.in_proj_weight": (24, 8),
        "multi_head_attn.in_proj_bias": (24,),
        "multi_head_attn.out_proj.weight": (8, 8),
        "multi_head_attn.out_proj.bias": (8,),
        "norm1.weight": (8,),
        "norm1.bias": (8,),
        "ff.0.weight": (12, 8),
        "ff.0.bias": (12,),
        "ff.3.weight": (8, 12),
        "ff.3.bias": (8,),
        "norm2.weight": (8,),
        "norm2.bias": (8,),
    }
    shapes = {
        "text_embedding.weight": (20, 8),
        "text_pos_encoding": (1, 512, 8),
        "image_patch_embedding.weight": (8, 768),
        "image_patch_embedding.bias": (8,),
        "cls_token": (1, 1, 8),
        "image_pos_encoding": (1, 5, 8),
        "text_generation_head.0.weight": (8,),
        "text_generation_head.0.bias": (8,),
        "text_generation_head.1.weight": (20, 8),
        "text_generation_head.1.bias": (20,),
        **{f"transformer_layers.{index}.{name}": shape for index in range(2) for name, shape in layer.items()},
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    found = summarise(str(tmp_path))
    assert found.format == "seed"
    assert found.total.parameters == sum(math.prod(shape) for shape in shapes.values())
    assert {part.name: part.parameters for part in found.modules(1)} == {
        "vision": 8 * 768 + 8 + 8 + 40,
        "text": 20 * 8 + 512 * 8,
        "blocks": 2 * sum(math.prod(shape) for shape in layer.values()),
        "head": 16 + 20 * 8 + 20,
    }
    assert {entry["name"]: tuple(entry["shape"]) for entry in found.to_json(1)["tensors"]} == shapes


def test_file_without_a_config_is_shown_by_its_own_names(tmp_path):
    write_file(tmp_path / "any.safetensors", {"decoder.layers.0.weight": [3, 2], "decoder.scale": [4]})
    found = summarise(str(tmp_path / "any.safetensors"))
    assert (found.model, found.format, found.modalities()) == ("any", "safetensors", [])
    assert [(p.name, p.modality, p.parameters) for p in found.modules(2)] == [
        ("decoder.layers", None, 6),
        ("decoder.scale", None, 4),
    ]


def test_file_without_tensors_has_nothing_in_it(tmp_path):
    write_file(tmp_path / "none.safetensors", {})
    found = summarise(str(tmp_path / "none.safetensors"))
    assert (found.total.parameters, found.total.nbytes, found.modules(2)) == (0, 0, [])


def test_json_has_the_contracts_keys(mini):
    _, folder = mini
    record = summarise(str(folder)).to_json(2)
    assert list(record) == ["model", "format", "parameters", "bytes", "modules", "tensors", "metadata"]
    assert {tuple(module) for module in record["modules"]} == {("name", "modality", "parameters", "dtype", "bytes")}
    assert {tuple(tensor) for tensor in record["tensors"]} == {
        ("name", "modality", "dtype", "shape", "parameters", "bytes")
    }
    assert record["parameters"] == sum(tensor["parameters"] for tensor in record["tensors"])
    assert record["bytes"] == sum(tensor["bytes"] for tensor in record["tensors"])
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(("reference", "error"), [("preset:nope", UsageError), ("nowhere", ModelError)])
def test_unknown_model_is_named(reference, error):
    with pytest.raises(error, match=reference.removeprefix("preset:")):
        summarise(reference)


@pytest.mark.parametrize("name", ["gone.safetensors", "x" * 300 + ".safetensors", "\0.safetensors"])
def test_missing_file_is_a_model_error(name, tmp_path):
    with pytest.raises(ModelError):
        summarise(str(tmp_path / name))
