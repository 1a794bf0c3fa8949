"""Image processors of Hugging Face checkpoints give the very pixels that transformers' PIL-backed classes give."""

import json
import math
import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmt_cli.checkpoint.image_processor import preprocessing_from_hf
from mmt_cli.errors import ModelError
from mmt_cli.inputs.preprocess import to_picture, to_pixels

PLAIN: list[dict[str, Any]] = [
    {"image_processor_type": "CLIPImageProcessor"},
    {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 33}, "crop_size": 20},
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": {"height": 41, "width": 26}},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9}, "crop_size": [14, 17]},
    {
        "image_processor_type": "CLIPImageProcessor",  # Florence-2's
        "do_center_crop": False,
        "size": {"height": 48, "width": 48},
        "crop_size": {"height": 48, "width": 48},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    {"image_processor_type": "CLIPImageProcessor", "size": {"height": 31, "width": 50}, "crop_size": 24},
    {"image_processor_type": "BlipImageProcessorPil"},
    {"image_processor_type": "BlipImageProcessor", "size": 40, "do_pad": True, "do_convert_rgb": None},
    {"feature_extractor_type": "ViTFeatureExtractor", "size": 38},
    {"image_processor_type": "ViTImageProcessor", "size": [24, 35], "resample": 0},
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "rescale_factor": "unused", "resample": 4},
    {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "image_mean": None, "resample": 5},
    {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "do_rescale": False, "resample": 1},
    {"image_processor_type": "ViTImageProcessor", "size": 64, "do_center_crop": True, "crop_size": 47},
    {"image_processor_type": "ViTImageProcessor", "size": 40, "rescale_factor": 1 / 127.5, "image_mean": 1.0},
    {"image_processor_type": "DeiTImageProcessor"},
    {"feature_extractor_type": "DeiTFeatureExtractor", "size": 51, "crop_size": 32, "do_center_crop": True},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 42}},
    {"image_processor_type": "SiglipImageProcessor", "image_std": [0.1, 0.2, 0.3], "resample": 2},
    {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 36}, "crop_size": 36},
    {
        "image_processor_type": "LlavaImageProcessorFast",
        "do_pad": True,
        "do_normalize": False,
        "image_mean": [0.0, 0.3, 1.0],
        "size": {"height": 30, "width": 30},
        "crop_size": {"height": 22, "width": 35},
    },
]
TILED: list[dict[str, Any]] = [
    {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 96},
        "max_image_size": {"longest_edge": 32},
    },
    {
        "image_processor_type": "SmolVLMImageProcessorFast",
        "size": {"longest_edge": 75},
        "max_image_size": {"longest_edge": 31},
    },
    {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 24},
        "max_image_size": {"longest_edge": 32},
    },
    {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 80},
        "max_image_size": {"longest_edge": 24},
        "do_image_splitting": False,
    },
    {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 24, "width": 24}},
    {"image_processor_type": "GotOcr2ImageProcessorFast", "size": 20, "min_patches": 2, "max_patches": 6},
    {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 20, "width": 28}, "max_patches": 5},
    {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 24, "width": 24}, "max_patches": 1},
]
SIZES = [(1, 1), (2, 3), (64, 64), (37, 90), (200, 61), (255, 256), (1, 40), (333, 5), (150, 100), (120, 30)]


def photo(width: int, height: int) -> Image.Image:
    """An image of samples drawn at random, the same for the same size."""
    return Image.frombytes("RGB", (width, height), random.Random(width * 10_007 + height).randbytes(3 * width * height))


def reference(data: dict[str, Any], image: Image.Image) -> Any:
    """What transformers' PIL-backed class of that name gives, as its processors call it."""
    name = data.get("image_processor_type") or data["feature_extractor_type"].replace(
        "FeatureExtractor", "ImageProcessor"
    )
    processor = getattr(transformers, name.removesuffix("Fast").removesuffix("Pil") + "Pil").from_dict(data)
    assert processor.backend == "pil"
    call: dict[str, Any] = {"return_tensors": "pt"}
    if "GotOcr2" in name:
        call |= transformers.InternVLProcessor.images_kwargs
    elif "SmolVLM" in name or "Idefics3" in name:
        call |= transformers.SmolVLMProcessor.images_kwargs
    return processor(image, **call)


def as_text(data: dict[str, Any]) -> str:
    return json.dumps(data)


@pytest.mark.parametrize("data", PLAIN, ids=as_text)
def test_pixels_are_those_of_transformers(data: dict[str, Any]) -> None:
    preprocessing = preprocessing_from_hf(data)
    for width, height in SIZES:
        expected_CHW = reference(data, photo(width, height))["pixel_values"][0]
        pixels_CHW = to_pixels(photo(width, height), preprocessing)
        assert pixels_CHW.shape == (3, preprocessing.height, preprocessing.width)
        assert torch.equal(pixels_CHW, expected_CHW.float()), (width, height)


def check_tiles(data: dict[str, Any], width: int, height: int) -> None:
    """Assert that the tiles, their order and their grid are those of transformers."""
    preprocessing = preprocessing_from_hf(data)
    found = reference(data, photo(width, height))
    picture = to_picture(photo(width, height), preprocessing)
    expected_NCHW = found["pixel_values"]
    if "rows" in found:
        expected_NCHW = expected_NCHW[0]
        assert (picture.rows, picture.columns) == (found["rows"][0][0], found["cols"][0][0])
    assert picture.pixels_NCHW.shape == expected_NCHW.shape, (width, height)
    assert torch.equal(picture.pixels_NCHW, expected_NCHW), (width, height)
    tiles = picture.rows * picture.columns
    assert len(picture.pixels_NCHW) == (tiles + 1 if tiles else 1)
    assert picture.thumbnail == (tiles > 0)


@pytest.mark.parametrize("data", TILED, ids=as_text)
def test_tiles_are_those_of_transformers(data: dict[str, Any]) -> None:
    for width, height in SIZES:
        check_tiles(data, width, height)


@pytest.mark.parametrize("data", [TILED[0], TILED[1], TILED[3], TILED[4], TILED[6]], ids=as_text)
@settings(max_examples=30)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_tiles_of_any_size_are_those_of_transformers(data: dict[str, Any], width: int, height: int) -> None:
    check_tiles(data, width, height)


@pytest.mark.parametrize("data", [PLAIN[1], PLAIN[2], PLAIN[-2]], ids=as_text)
@settings(max_examples=30)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_crops_of_any_size_are_those_of_transformers(data: dict[str, Any], width: int, height: int) -> None:
    expected_CHW = reference(data, photo(width, height))["pixel_values"][0]
    assert torch.equal(to_pixels(photo(width, height), preprocessing_from_hf(data)), expected_CHW)


@pytest.mark.parametrize("longest_edge", [2048, 8192])
def test_smolvlm_enlarges_as_transformers_does_up_to_its_own_bound(longest_edge: int) -> None:
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": 512}}
    check_tiles({"image_processor_type": "SmolVLMImageProcessor"} | sizes, 61, 11)


@pytest.mark.parametrize("data", TILED, ids=as_text)
def test_without_split_is_what_transformers_does_when_told_not_to_split(data: dict[str, Any]) -> None:
    image = photo(90, 37)
    picture = to_picture(image, preprocessing_from_hf(data).without_split())
    told = data | {"do_image_splitting": False, "max_patches": 1}
    expected = reference(told, image)["pixel_values"]
    assert torch.equal(picture.pixels_NCHW, expected.reshape(1, *expected.shape[-3:]))
    assert (picture.rows, picture.columns, picture.thumbnail) == (0, 0, False)
    assert torch.equal(to_pixels(image, preprocessing_from_hf(data).without_split()), picture.pixels_NCHW[0])


@pytest.mark.parametrize("kind", ["CLIP", "Blip", "ViT", "DeiT", "Siglip", "Llava", "Idefics3", "SmolVLM", "GotOcr2"])
def test_what_a_saved_processor_writes_says_the_same_as_a_sparse_file(kind: str) -> None:
    sparse = {"image_processor_type": f"{kind}ImageProcessor"}
    full = json.loads(getattr(transformers, f"{kind}ImageProcessorPil")().to_json_string())
    assert preprocessing_from_hf(full) == preprocessing_from_hf(sparse)
    assert preprocessing_from_hf({"processor_class": "X", "image_processor": full}) == preprocessing_from_hf(sparse)
    assert not preprocessing_from_hf(sparse).draft


def test_null_counts_as_left_out_and_unknown_keys_are_passed_over() -> None:
    data = {"image_processor_type": "BlipImageProcessor", "size": None, "resample": None, "auto_map": {"x": "y.py"}}
    assert preprocessing_from_hf(data) == preprocessing_from_hf({"feature_extractor_type": "BlipFeatureExtractor"})


def test_internvl_splits_whatever_the_file_says() -> None:
    off = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": 24, "width": 24},
        "crop_to_patches": False,
    }
    assert to_picture(photo(120, 30), preprocessing_from_hf(off)).columns == 4
    check_tiles(off, 120, 30)


@pytest.mark.parametrize("name", ["LlavaNextImageProcessor", "CLIP", "", None, 3, ["CLIPImageProcessor"], "x\n" * 99])
def test_unknown_types_are_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(ModelError, match="known: Blip, CLIP") as caught:
        preprocessing_from_hf({"image_processor_type": name})
    assert "\n" not in str(caught.value)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("CLIP", {"do_resize": False}, "do_resize is false.*shortest_edge"),
    ("CLIP", {"do_center_crop": False}, "shortest_edge.*do_center_crop is false"),
    ("CLIP", {"do_center_crop": "no"}, "do_center_crop.*'no'"),
    ("CLIP", {"do_normalize": 1}, "do_normalize"),
    ("CLIP", {"size": {"shortest_edge": 224, "longest_edge": 500}}, "longest_edge"),
    ("CLIP", {"size": {"shortest_edge": math.nan}}, "nan"),
    ("CLIP", {"size": "224"}, "'224'"),
    ("CLIP", {"size": 0}, "size.* 0"),
    ("CLIP", {"size": 10**5000}, "huge"),
    ("CLIP", {"size": [1, 2, 3]}, "size"),
    ("CLIP", {"size": True}, "size"),
    ("CLIP", {"crop_size": {"shortest_edge": 5}}, "crop_size"),
    ("CLIP", {"crop_size": -1}, "crop_size"),
    ("CLIP", {"resample": 6}, "resample"),
    ("CLIP", {"resample": True}, "resample"),
    ("CLIP", {"image_mean": [0.5, 0.5]}, "mean"),
    ("CLIP", {"image_mean": [0.5, 0.5, math.nan]}, "mean"),
    ("CLIP", {"image_std": 0}, "std"),
    ("CLIP", {"image_std": "x"}, "std"),
    ("CLIP", {"rescale_factor": math.inf}, "rescale"),
    ("CLIP", {"rescale_factor": "1/255"}, "rescale"),
    ("CLIP", {"do_pad": True, "pad_size": {"height": 300, "width": 300}}, "do_pad.*pad_size"),
    ("ViT", {"do_center_crop": True}, "crop_size"),
    ("Siglip", {"size": 224}, "shortest_edge"),
    ("Llava", {"do_pad": True, "image_mean": [0.5, 0.5, 1.5]}, "1.5"),
    ("Idefics3", {"size": {"height": 5, "width": 5}}, "longest_edge"),
    ("Idefics3", {"max_image_size": {"longest_edge": 10}}, "1024 tiles"),
    ("Idefics3", {"max_image_size": {"longest_edge": 1e9}}, "max_image_size"),
    ("Idefics3", {"do_image_splitting": "yes"}, "do_image_splitting"),
    ("GotOcr2", {"min_patches": 5, "max_patches": 4}, "min_patches.*5.*4"),
    ("GotOcr2", {"max_patches": 10**9}, "max_patches"),
    ("GotOcr2", {"max_patches": 1000, "size": 2000}, "1000.*2000"),
    ("GotOcr2", {"size": {"shortest_edge": 9}}, "size"),
]


@pytest.mark.parametrize(("kind", "change", "named"), BAD, ids=map(str, range(len(BAD))))
def test_options_that_cannot_be_honoured_are_refused_by_name(kind: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        preprocessing_from_hf({"image_processor_type": f"{kind}ImageProcessor"} | change)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("inner", [[], None, "CLIPImageProcessor", 3])
def test_a_nested_processor_that_is_no_object_is_refused(inner: object) -> None:
    with pytest.raises(ModelError, match="image_processor"):
        preprocessing_from_hf({"image_processor": inner})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "width", "longest_edge"]), inner)
    ),
    max_leaves=5,
)
KEYS = sorted({key for data in PLAIN + TILED for key in data} | {"do_resize", "do_center_crop", "default_to_square"})


@given(
    data=st.dictionaries(st.sampled_from(KEYS), ANYTHING), kind=st.sampled_from(["CLIP", "Llava", "SmolVLM", "GotOcr2"])
)
def test_whatever_the_values_are_they_are_taken_or_refused(data: dict[str, Any], kind: str) -> None:
    try:
        preprocessing = preprocessing_from_hf(data | {"image_processor_type": f"{kind}ImageProcessor"})
    except ModelError as error:
        assert "\n" not in str(error)
        return
    assert type(preprocessing).from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
