"""Every pixel mode and stored format becomes the opaque 8-bit RGB that a viewer shows."""

import io
import math
import struct
import zlib

import pytest
from PIL import Image, ImageChops, ImageCms, TiffImagePlugin

from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import read_image

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG built by hand, for stored formats that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    samples = image.tobytes()
    return [tuple(samples[start : start + 3]) for start in range(0, len(samples), 3)]


def ramp_error(image: Image.Image, values: list[int]) -> float:
    """Largest distance, in steps of 1/255, between a row of grey pixels and the 16-bit values it came from."""
    assert image.mode == "RGB"
    assert image.size == (len(values), 1)
    assert all(red == green == blue for red, green, blue in pixels(image))
    return max(abs(pixel[0] - value * 255 / 65535) for pixel, value in zip(pixels(image), values, strict=True))


RAMP = [min(65535, step * 131) for step in range(502)]


def test_16_bit_grey_png_keeps_its_ramp() -> None:
    data = png(len(RAMP), 1, 16, 0, [struct.pack(f">{len(RAMP)}H", *RAMP)])
    assert ramp_error(read_image(data), RAMP) <= 0.51


def test_16_bit_rgb_png_keeps_its_ramp() -> None:
    data = png(len(RAMP), 1, 16, 2, [b"".join(struct.pack(">HHH", value, value, value) for value in RAMP)])
    assert ramp_error(read_image(data), RAMP) < 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_of_either_byte_order_keeps_its_ramp(order: str) -> None:
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (len(RAMP), 1), struct.pack(f"{order}{len(RAMP)}H", *RAMP))
    assert ramp_error(read_image(encoded(image, "TIFF")), RAMP) <= 0.51
    assert ramp_error(read_image(image), RAMP) <= 0.51


def test_mode_i_is_read_as_16_bit_and_negatives_are_black() -> None:
    image = Image.frombytes("I", (len(RAMP), 1), struct.pack(f"={len(RAMP)}i", *RAMP))
    assert ramp_error(read_image(image), RAMP) <= 0.51
    assert read_image(Image.new("I", (1, 1), -5)).getpixel((0, 0)) == (0, 0, 0)


def test_12_bit_tiff_reaches_white() -> None:
    stored = bytearray(encoded(Image.frombytes("I;16", (3, 1), bytes(6)), "TIFF"))
    directory = struct.unpack_from("<I", stored, 4)[0]
    for entry in range(struct.unpack_from("<H", stored, directory)[0]):
        at = directory + 2 + 12 * entry
        tag = struct.unpack_from("<H", stored, at)[0]
        if tag == TiffImagePlugin.BITSPERSAMPLE:
            struct.pack_into("<H", stored, at + 8, 12)
        if tag == TiffImagePlugin.STRIPOFFSETS:
            strip = struct.unpack_from("<I", stored, at + 8)[0]
    stored[strip : strip + 5] = bytes([0xFF, 0xF8, 0x00, 0x00, 0x00])  # 4095, 2048, 0, packed high bits first
    assert [pixel[0] for pixel in pixels(read_image(bytes(stored)))] == [255, 128, 0]


@pytest.mark.parametrize(("mode", "samples"), [("I;16", struct.pack("<HH", 0, 65535)), ("F", struct.pack("=2f", 0, 1))])
def test_tiff_that_stores_white_as_zero_is_inverted(mode: str, samples: bytes) -> None:
    image = Image.frombytes(mode, (2, 1), samples)
    stored = bytearray(encoded(image, "TIFF"))
    directory = struct.unpack_from("<I", stored, 4)[0]
    for entry in range(struct.unpack_from("<H", stored, directory)[0]):
        at = directory + 2 + 12 * entry
        if struct.unpack_from("<H", stored, at)[0] == TiffImagePlugin.PHOTOMETRIC_INTERPRETATION:
            struct.pack_into("<H", stored, at + 8, 0)
    assert pixels(read_image(bytes(stored))) == [WHITE, (0, 0, 0)]


def test_integers_above_16_bit_are_unsupported_and_the_value_is_named() -> None:
    with pytest.raises(ImageError, match="70000") as caught:
        read_image(encoded(Image.new("I", (2, 2), 70000), "TIFF"))
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([math.nan, 0.5, 1.0], [0, 128, 255]),
        ([1.0, math.nan, -3.0], [255, 0, 0]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([math.nan, math.nan, math.nan], [0, 0, 0]),
    ],
)
def test_float_tiff_is_scaled_from_the_range_it_fits_and_nan_is_black(
    samples: list[float], expected: list[int]
) -> None:
    image = Image.frombytes("F", (3, 1), struct.pack("=3f", *samples))
    assert [pixel[0] for pixel in pixels(read_image(encoded(image, "TIFF")))] == expected


@pytest.mark.parametrize("sample", [1e9, math.inf])
def test_float_tiff_without_a_known_scale_is_unsupported(sample: float) -> None:
    image = Image.frombytes("F", (2, 1), struct.pack("=2f", 0.5, sample))
    with pytest.raises(ImageError, match=r"floats above 65535") as caught:
        read_image(encoded(image, "TIFF"))
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_laid_over_white(image_format: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    assert pixels(read_image(encoded(image, image_format, **options))) == [RED, WHITE, (127, 127, 127)]


def test_fully_transparent_image_is_white_and_hides_its_colour() -> None:
    assert read_image(Image.new("RGBA", (2, 2), (10, 20, 30, 0))).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_other_alpha_modes_are_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(0, 0, 0, 255), (0, 0, 0, 0)])
    if mode == "La":
        image = image.convert("LA")
    assert pixels(read_image(image.convert(mode))) == [(0, 0, 0), WHITE]


def test_premultiplied_alpha_is_not_applied_twice() -> None:
    image = Image.new("RGBA", (1, 1), (200, 100, 0, 128)).convert("RGBa")
    expected = tuple(round((sample * 128 + 255 * 127) / 255) for sample in (200, 100, 0))
    seen = read_image(image).getpixel((0, 0))
    assert all(abs(a - b) <= 1 for a, b in zip(seen, expected, strict=True))


def test_palette_with_one_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.putdata([0, 1, 2])
    assert pixels(read_image(encoded(image, "PNG", transparency=1))) == [RED, WHITE, (0, 255, 0)]
    assert pixels(read_image(encoded(image, "GIF", transparency=1))) == [RED, WHITE, (0, 255, 0)]


def test_palette_with_alpha_for_each_colour_is_laid_over_white() -> None:
    rows = [bytes([0, 1, 2])]
    chunks = (b"PLTE", bytes([255, 0, 0, 0, 0, 255, 0, 0, 0])), (b"tRNS", bytes([255, 0, 128]))
    assert pixels(read_image(png(3, 1, 8, 3, rows, *chunks))) == [RED, WHITE, (127, 127, 127)]


@pytest.mark.parametrize(
    ("bits", "row", "hidden", "expected"),
    [
        (1, bytes([0b01000000]), 0, [255, 255]),
        (2, bytes([0b01100000]), 1, [255, 170]),
        (4, bytes([0x5A]), 5, [255, 170]),
        (8, bytes([7, 170]), 7, [255, 170]),
        (16, struct.pack(">HH", 0x8000, 0xAAAA), 0x8000, [255, 170]),
        (16, struct.pack(">HH", 0x8000, 0xAAAA), 0x8001, [128, 170]),
    ],
)
def test_transparent_grey_of_every_bit_depth_is_white(bits: int, row: bytes, hidden: int, expected: list[int]) -> None:
    image = read_image(png(2, 1, bits, 0, [row], (b"tRNS", struct.pack(">H", hidden))))
    assert [pixel[0] for pixel in pixels(image)] == expected


def test_transparent_rgb_colour_is_white_at_8_and_16_bit() -> None:
    eight = png(2, 1, 8, 2, [bytes([*BLUE, *RED])], (b"tRNS", struct.pack(">HHH", *BLUE)))
    assert pixels(read_image(eight)) == [WHITE, RED]
    blue_16, red_16 = (0x1234, 0, 0xFFFF), (0xFFFF, 0, 0)
    row = struct.pack(">6H", *blue_16, *red_16)
    sixteen = png(2, 1, 16, 2, [row], (b"tRNS", struct.pack(">HHH", *blue_16)))
    assert pixels(read_image(sixteen)) == [WHITE, RED]


def test_16_bit_grey_with_alpha_is_laid_over_white() -> None:
    row = struct.pack(">4H", 0x8080, 0xFFFF, 0, 0)
    assert pixels(read_image(png(2, 1, 16, 4, [row]))) == [(128, 128, 128), WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "RGBX", "CMYK"])
def test_opaque_modes_keep_their_look(mode: str) -> None:
    image = Image.new("RGB", (4, 4), WHITE)
    image.paste((0, 0, 0), (0, 0, 2, 4))
    seen = read_image(image.convert(mode))
    assert seen.mode == "RGB"
    assert ImageChops.difference(seen, image).getextrema() == ((0, 0),) * 3


def test_cmyk_jpeg_is_converted_whether_adobe_inverted_it_or_not() -> None:
    adobe = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in adobe
    red, green, blue = read_image(adobe).getpixel((4, 4))
    assert red > 230
    assert max(green, blue) < 25


def test_cmyk_tiff_is_converted() -> None:
    assert read_image(encoded(Image.new("CMYK", (2, 2), (255, 255, 0, 0)), "TIFF")).getpixel((0, 0)) == BLUE


def test_lab_tiff_is_converted() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    colour = (200, 60, 30)
    image = ImageCms.profileToProfile(Image.new("RGB", (2, 2), colour), srgb, lab, outputMode="LAB")
    seen = read_image(encoded(image, "TIFF")).getpixel((0, 0))
    assert all(abs(a - b) <= 4 for a, b in zip(seen, colour, strict=True))
