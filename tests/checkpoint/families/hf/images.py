"""Pictures with structure: gradients with shapes on them, no two alike."""

import random

from PIL import Image, ImageDraw

# Width and height; no picture is square, and they are smaller and larger than what the models take.
SIZES = ((20, 30), (64, 48), (300, 180), (37, 91), (128, 96), (33, 32), (180, 300), (75, 50))


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    """Return RGB pictures of unequal sides, the same ones for the same seed."""
    generator = random.Random(seed)
    return [_photo(generator, SIZES[index % len(SIZES)]) for index in range(count)]


def _photo(generator: random.Random, size: tuple[int, int]) -> Image.Image:
    gradients = [Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L")]
    generator.shuffle(gradients)
    picture = Image.merge("RGB", gradients).resize(size)
    draw = ImageDraw.Draw(picture)
    for shape in (draw.rectangle, draw.ellipse, draw.rectangle, draw.ellipse):
        left, right = sorted(generator.sample(range(size[0]), 2))
        top, bottom = sorted(generator.sample(range(size[1]), 2))
        shape((left, top, right, bottom), fill=tuple(generator.randrange(256) for _ in range(3)))
    return picture
