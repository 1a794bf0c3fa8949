"""A look at each image of a run without the model: whether it can be read, and what the model would be given."""

from dataclasses import dataclass

from mmt_cli.captioning.items import Item
from mmt_cli.errors import ImageError
from mmt_cli.inputs.image import ImageFacts, describe_image
from mmt_cli.inputs.preprocess import Preprocessing, to_picture
from mmt_cli.inputs.prompt import Layout
from mmt_cli.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found of one image.

    Attributes:
        facts: what its header says; None where it cannot be read.
        tiles: images that the model reads for it.
        tokens: image tokens that the model makes of them.
        error: why it cannot be read.
    """

    facts: ImageFacts | None = None
    tiles: int = 0
    tokens: int = 0
    error: ImageError | None = None


def look(item: Item, config: ModelConfig, how: Preprocessing, *, max_pixels: int) -> Look:
    """Read an image to its end as a run would; called in threads."""
    try:
        draft_size = (how.height, how.width) if how.draft else None
        facts, image = describe_image(item.open(), max_pixels=max_pixels, draft_size=draft_size)
        picture = to_picture(image, how)
    except ImageError as error:
        return Look(error=error)
    except MemoryError:
        return Look(error=ImageError("out_of_memory", "there is not enough memory to decode the image; free some"))
    layout = Layout(
        tokens=config.image_shape(how.height, how.width)[1],
        rows=picture.rows,
        columns=picture.columns,
        tiles=len(picture),
    )
    return Look(facts=facts, tiles=layout.tiles, tokens=layout.tokens * layout.tiles)
