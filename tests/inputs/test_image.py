"""Reading files: orientation, cuts, caps, drafts, and one error class for everything that is wrong with a file."""

import io
import os
import random
import struct
import subprocess
import sys
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat, PngImagePlugin

from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import IMAGE_SUFFIXES, MAX_PIXELS, read_image

# The module keeps Pillow's remarks quiet by a filter set at import, which pytest takes away again for each test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PHOTOS = sorted((Path(__file__).parents[1] / "data").glob("*.jpg"))
KINDS = {"missing", "unreadable", "unsupported", "truncated", "too_large", "out_of_memory"}
ORIENTATION = 0x0112
# What a camera stores for each EXIF orientation of one upright scene (EXIF 2.32, 4.6.4).
TO_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Four patches that tell every flip and turn apart."""
    image = Image.new("RGB", (width, height), "navy")
    image.paste((250, 30, 30), (0, 0, width // 2, height // 2))
    image.paste((30, 240, 30), (width // 2, 0, width, height // 2))
    image.paste((240, 240, 240), (0, height // 2, width // 4, height))
    return image


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two images of one size, 0 to 255."""
    assert first.size == second.size
    return max(ImageStat.Stat(ImageChops.difference(first, second)).mean)


def noise(width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(width * height * 3))


def with_orientation(orientation: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def error_of(source: str | Path | bytes | Image.Image, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    return caught.value


PICTURE = scene()
FILES = {
    "jpeg": encoded(PICTURE, "JPEG", quality=90),
    "progressive": encoded(PICTURE, "JPEG", progressive=True),
    "png": encoded(PICTURE, "PNG"),
    "gif": encoded(PICTURE, "GIF"),
    "webp": encoded(PICTURE, "WEBP", quality=95),
    "webp_lossless": encoded(PICTURE, "WEBP", lossless=True),
    "bmp": encoded(PICTURE, "BMP"),
    "tiff": encoded(PICTURE, "TIFF"),
    "tiff_lzw": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff_jpeg": encoded(PICTURE, "TIFF", compression="jpeg"),
    "avif": encoded(PICTURE, "AVIF", quality=95),
    "mpo": encoded(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64), "red")], quality=90),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_read_from_bytes_and_from_a_path_whatever_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(FILES[kind])
    seen = read_image(FILES[kind])
    assert seen.mode == "RGB"
    assert distance(seen, PICTURE) < 12
    assert read_image(path).tobytes() == read_image(str(path)).tobytes() == seen.tobytes()


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_is_taken(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    red, green, blue = read_image(data).getpixel((8, 8))
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_every_orientation_comes_out_upright(orientation: int, image_format: str) -> None:
    step = TO_STORED[orientation]
    stored = PICTURE if step is None else PICTURE.transpose(step)
    data = encoded(stored, image_format, exif=with_orientation(orientation), quality=95)
    assert distance(read_image(data), PICTURE) < 12


@pytest.mark.parametrize("orientation", [0, 9, 77, "6", (6, 6), [6]])
def test_orientations_that_make_no_sense_are_ignored(orientation: object) -> None:
    image = PICTURE.copy()
    image.getexif()[ORIENTATION] = orientation
    assert distance(read_image(image), PICTURE) == 0


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\0" * 9])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    assert distance(read_image(encoded(PICTURE, "PNG", exif=exif)), PICTURE) == 0
    assert distance(read_image(encoded(PICTURE, "JPEG", exif=exif, quality=90)), PICTURE) < 12


def test_a_read_image_is_plain_and_is_not_turned_a_second_time() -> None:
    once = read_image(encoded(PICTURE, "JPEG", exif=with_orientation(6)))
    assert type(once) is Image.Image
    assert once.info == {}
    assert read_image(once).tobytes() == once.tobytes()


def test_a_pillow_image_is_turned_and_made_opaque_but_not_changed() -> None:
    turned = PICTURE.transpose(TO_STORED[6]).convert("RGBA")
    turned.getexif()[ORIENTATION] = 6
    before = turned.tobytes()
    seen = read_image(turned)
    assert distance(seen, PICTURE) == 0
    assert (turned.mode, turned.tobytes(), turned.getexif()[ORIENTATION]) == ("RGBA", before, 6)
    assert read_image(PICTURE) is not PICTURE


def test_a_pillow_image_still_to_be_loaded_is_read_with_its_orientation() -> None:
    lazy = Image.open(io.BytesIO(encoded(PICTURE.transpose(TO_STORED[8]), "JPEG", exif=with_orientation(8))))
    assert distance(read_image(lazy), PICTURE) < 12


def test_a_pillow_image_that_cannot_be_loaded_is_an_image_error() -> None:
    data = encoded(noise(64, 64), "JPEG")
    lazy = Image.open(io.BytesIO(data[: len(data) // 2]))
    assert error_of(lazy).kind == "truncated"


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"mpo"}))
def test_a_file_cut_in_half_is_an_error_named_truncated(kind: str) -> None:
    error = error_of(FILES[kind][: len(FILES[kind]) // 2])
    assert error.kind in ({"truncated", "unreadable"} if kind in ("avif", "tiff_jpeg") else {"truncated"})


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"png", "gif", "bmp", "mpo"}))
def test_a_file_cut_by_one_byte_is_an_error(kind: str) -> None:
    assert error_of(FILES[kind][:-1]).kind in {"truncated", "unreadable"}


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "webp", "tiff"])
def test_a_file_cut_by_one_byte_is_named_truncated(kind: str) -> None:
    assert error_of(FILES[kind][:-1]).kind == "truncated"


@pytest.mark.parametrize("length", [2, 5, 9])
def test_a_gif_cut_in_its_frame_header_is_named_truncated(length: int) -> None:
    frame = FILES["gif"].index(b"\x2c\0\0\0\0")
    assert error_of(FILES["gif"][: frame + length]).kind == "truncated"


@pytest.mark.parametrize("kind", ["png", "gif", "bmp"])
def test_a_cut_in_the_trailer_leaves_the_whole_picture(kind: str) -> None:
    # BMP rows are padded to 4 bytes; 97 pixels leave a padding byte at the end.
    picture = scene(97, 64)
    whole = encoded(picture, kind)
    assert read_image(whole[:-1]).tobytes() == read_image(whole).tobytes()


@pytest.mark.parametrize("length", [0, 1, 3, 8, 20, 40])
@pytest.mark.parametrize("kind", FILES)
def test_the_first_bytes_alone_are_an_error(kind: str, length: int) -> None:
    assert error_of(FILES[kind][:length]).kind in {"truncated", "unreadable", "unsupported"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_draft_decodes_small_but_never_below_the_size_asked_for(orientation: int) -> None:
    stored_size = (1024, 640) if orientation < 5 else (640, 1024)
    upright = PICTURE.resize((1024, 640))
    stored = upright if orientation == 1 else upright.transpose(TO_STORED[orientation])
    assert stored.size == stored_size
    data = encoded(stored, "JPEG", exif=with_orientation(orientation), quality=90)
    # A quarter, 256 x 160, is the least that covers 160 high and 250 wide; 161 high needs the half.
    quarter, half = read_image(data, draft_size=(160, 250)), read_image(data, draft_size=(161, 250))
    assert (quarter.size, half.size) == ((256, 160), (512, 320))
    assert distance(quarter, upright.resize((256, 160), Image.Resampling.BOX)) < 4


def test_draft_never_enlarges_and_leaves_other_formats_whole() -> None:
    assert read_image(FILES["jpeg"], draft_size=(500, 500)).size == PICTURE.size
    assert read_image(FILES["png"], draft_size=(8, 8)).size == PICTURE.size
    assert read_image(FILES["mpo"], draft_size=(8, 8)).size == (12, 8)


def test_draft_on_a_strip_keeps_its_short_side() -> None:
    assert read_image(encoded(Image.new("RGB", (8000, 1)), "JPEG"), draft_size=(224, 224)).size == (8000, 1)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_a_drafted_photo_looks_like_the_whole_one(photo: Path) -> None:
    whole, drafted = read_image(photo), read_image(photo, draft_size=(112, 112))
    assert drafted.width < whole.width
    size = (112, 112)
    assert distance(whole.resize(size, Image.Resampling.BICUBIC), drafted.resize(size, Image.Resampling.BICUBIC)) < 6


def test_there_are_a_dozen_small_photos_each_named_in_sources() -> None:
    sources = (PHOTOS[0].parent / "SOURCES.md").read_text(encoding="utf-8")
    assert len(PHOTOS) == 12
    for photo in PHOTOS:
        assert f"`{photo.name}`" in sources
        assert photo.stat().st_size < 60_000
        assert max(read_image(photo).size) <= 480


def bare_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = (header, data, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize("size", [(8001, 8000), (9459, 9459), (13400, 13400), (40000, 40000), (2**31 - 1, 2**31 - 1)])
def test_size_is_refused_on_the_header_before_decoding(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = error_of(bare_png(*size))
    assert error.kind == "too_large"
    assert str(size[0] * size[1]) in str(error)
    assert str(MAX_PIXELS) in str(error)


def test_size_of_exactly_the_cap_passes_and_one_more_pixel_does_not() -> None:
    width, height = PICTURE.size
    assert read_image(FILES["jpeg"], max_pixels=width * height).size == PICTURE.size
    for source in (FILES["jpeg"], FILES["tiff"], FILES["webp"], PICTURE):
        assert error_of(source, max_pixels=width * height - 1).kind == "too_large"


def test_the_cap_is_the_only_one_also_above_pillows_own() -> None:
    # Pillow refuses 179 million pixels and warns from 89 million; the caller asked for more.
    error = error_of(bare_png(20000, 10000), max_pixels=300_000_000)
    assert error.kind == "truncated"


def test_the_draft_does_not_hide_the_size_from_the_cap() -> None:
    data = encoded(Image.new("L", (1000, 1000)), "JPEG")
    with pytest.raises(ImageError) as caught:
        read_image(data, max_pixels=999_999, draft_size=(10, 10))
    assert caught.value.kind == "too_large"


def test_gif_whose_second_frame_is_a_bomb_gives_its_first() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = bytearray(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    second = data.rindex(b"\x2c\0\0\0\0\x08\0\x08\0")
    assert second > data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    data[second + 1 : second + 9] = struct.pack("<HHHH", 0, 0, 65535, 65535)
    assert read_image(bytes(data)).size == (8, 8)


def test_gif_whose_first_frame_is_a_bomb_is_too_large() -> None:
    data = bytearray(encoded(Image.new("P", (8, 8), 1), "GIF"))
    first = data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    data[first + 1 : first + 9] = struct.pack("<HHHH", 0, 0, 65535, 65535)
    assert error_of(bytes(data)).kind == "too_large"


def test_png_text_bomb_is_an_error() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * 20_000_000, zip=True)
    assert error_of(encoded(PICTURE, "PNG", pnginfo=text)).kind in KINDS


def test_bad_icc_profile_is_ignored() -> None:
    assert read_image(encoded(PICTURE, "PNG", icc_profile=b"not a profile")).tobytes() == PICTURE.tobytes()


def test_tiff_whose_directories_form_a_loop_gives_its_first_page() -> None:
    data = bytearray(FILES["tiff"])
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, directory)[0]
    struct.pack_into("<I", data, directory + 2 + 12 * entries, directory)
    assert read_image(bytes(data)).tobytes() == PICTURE.tobytes()


def test_missing_file_is_named(tmp_path: Path) -> None:
    error = error_of(tmp_path / "gone.jpg")
    assert error.kind == "missing"
    assert "gone.jpg" in str(error)
    assert error_of(tmp_path / "gone" / "too.jpg").kind == "missing"


def test_path_below_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FILES["png"])
    assert error_of(tmp_path / "file" / "a.jpg").kind == "missing"


@pytest.mark.parametrize("text", ["hello, world", "<svg xmlns='http://www.w3.org/2000/svg'/>", "GIF8 no, text", "\n"])
def test_text_named_jpg_is_unreadable_and_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text(text)
    error = error_of(path)
    assert error.kind == "unreadable"
    assert "notes.jpg" in str(error)


def test_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    error = error_of(tmp_path / "empty.png")
    assert (error.kind, "0 bytes" in str(error)) == ("unreadable", True)


def test_postscript_named_png_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "drawing.png"
    path.write_bytes(encoded(PICTURE, "EPS"))
    assert error_of(path).kind == "unreadable"


def test_folder_is_unreadable(tmp_path: Path) -> None:
    error = error_of(tmp_path)
    assert (error.kind, "is a folder" in str(error)) == ("unreadable", True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifo_and_device_are_unreadable_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path(os.devnull), Path("/dev/zero")):
        error = error_of(path)
        assert (error.kind, "is not a regular file" in str(error)) == ("unreadable", True)


def test_file_without_permission_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "private.jpg"
    path.write_bytes(FILES["jpeg"])
    monkeypatch.setattr(Path, "open", refuse)
    error = error_of(path)
    assert (error.kind, "Permission denied" in str(error)) == ("unreadable", True)


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000 + ".jpg"])
def test_impossible_names_are_unreadable(name: str) -> None:
    assert error_of(name).kind == "unreadable"


def test_symlink_loop_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert error_of(tmp_path / "loop.jpg").kind == "unreadable"


HEIF_HEAD = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)


@pytest.mark.parametrize("head", [HEIF_HEAD, HEIF_HEAD.replace(b"heic", b"mif1")])
def test_heif_without_its_plugin_names_the_extra(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = error_of(head)
    assert error.kind == "unsupported"
    assert "pip install 'mmt-cli[heif]'" in str(error)


def test_heif_is_opened_by_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_heif(file: io.BytesIO) -> PngImagePlugin.PngImageFile:
        assert file.read() == HEIF_HEAD
        return PngImagePlugin.PngImageFile(io.BytesIO(FILES["png"]))

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(HeifImageFile=open_heif))
    assert distance(read_image(HEIF_HEAD), PICTURE) == 0


def test_avif_is_told_from_heif_by_its_other_brands() -> None:
    data = FILES["avif"].replace(b"ftypavif", b"ftypmif1", 1)
    assert b"avif" in data[16:64]
    assert distance(read_image(data), PICTURE) < 12


def test_pillow_without_avif_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    assert error_of(FILES["avif"]).kind == "unsupported"


@pytest.mark.parametrize("cause", [MemoryError(), OSError("out of memory error when reading image file")])
def test_running_out_of_memory_is_named(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise cause

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert error_of(FILES["png"]).kind == "out_of_memory"


def test_an_interrupt_is_not_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_image(FILES["png"])


def test_suffixes_are_those_of_the_contract() -> None:
    listed = ".jpg .jpeg .jpe .mpo .png .webp .gif .bmp .tif .tiff .avif .heic .heif"
    assert frozenset(listed.split()) == IMAGE_SUFFIXES


def test_many_threads_read_the_same_pixels() -> None:
    sources = [*FILES.values()] * 6
    expected = [read_image(source).tobytes() for source in FILES.values()] * 6
    with ThreadPoolExecutor(8) as pool:
        assert [image.tobytes() for image in pool.map(read_image, sources)] == expected


QUIET = """
import sys
from pathlib import Path
from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_image(path, max_pixels=10**10)
    except ImageError:
        pass
print(sorted({"torch", "numpy"} & set(sys.modules)), len(list(Path(sys.argv[1]).iterdir())))
"""


def test_damaged_files_leave_stderr_clean_and_numpy_and_torch_unimported(tmp_path: Path) -> None:
    picture = noise(64, 64)
    for compression in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        data = bytearray(encoded(picture, "TIFF", compression=compression))
        data[300:600] = b"\xa5" * 300  # libtiff remarks on this
        (tmp_path / f"{compression}.tif").write_bytes(data)
    (tmp_path / "cut.tif").write_bytes(encoded(picture, "TIFF")[:100])  # Pillow warns of cut tags
    (tmp_path / "bomb.png").write_bytes(bare_png(10_000, 10_000))  # Pillow warns of its size
    too_many_samples = bytearray(FILES["tiff"])
    entry = too_many_samples.index(struct.pack("<HH", 277, 3))
    struct.pack_into("<H", too_many_samples, entry + 8, 60_000)  # Pillow logs an error
    (tmp_path / "samples.tif").write_bytes(too_many_samples)
    command = [sys.executable, "-c", QUIET, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[] 7", "")


def image_or_image_error(source: bytes | Path, **options: int) -> ImageError | None:
    """Fail on any other exception; return the error, or None where an RGB image came out."""
    try:
        image = read_image(source, **options)
    except ImageError as error:
        assert error.kind in KINDS
        return error
    assert (type(image), image.mode) == (Image.Image, "RGB")
    return None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_image_error(data: bytes) -> None:
    image_or_image_error(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_a_sound_head_with_arbitrary_bytes_raises_nothing_but_image_error(kind: str, data: bytes) -> None:
    image_or_image_error(FILES[kind][:16] + data, max_pixels=1_000_000)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0, 2),
)
def test_changed_and_cut_files_raise_nothing_but_image_error(
    kind: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    image_or_image_error(bytes(data[: int(keep * len(data))]), max_pixels=1_000_000)


TEST_DATA = os.environ.get("MMT_TEST_DATA")
needs_test_data = pytest.mark.skipif(not TEST_DATA, reason="MMT_TEST_DATA names no folder of test data")


@needs_test_data
def test_every_torture_file_is_an_image_or_an_image_error() -> None:
    paths = [path for path in sorted(Path(str(TEST_DATA), "torture").rglob("*")) if path.is_file()]
    failed = [path for path in paths if image_or_image_error(path)]
    read = [path for path in paths if path.suffix in IMAGE_SUFFIXES and path not in failed]
    # Pillow passes two of the corrupt PNGs (bad checksums) and refuses two that others read.
    assert len([path for path in read if path.name.startswith("x")]) <= 2
    assert len([path for path in failed if path.suffix in IMAGE_SUFFIXES and not path.name.startswith("x")]) <= 2


@needs_test_data
@pytest.mark.parametrize("scene_name", ["Landscape", "Portrait"])
def test_real_photos_of_every_orientation_look_alike(scene_name: str) -> None:
    folder = Path(str(TEST_DATA), "torture", "exif_orientation")
    seen = [read_image(folder / f"{scene_name}_{number}.jpg", draft_size=(150, 150)) for number in range(9)]
    assert len({image.size for image in seen}) == 1
    for image in seen:
        assert distance(image, seen[1]) < 8
