"""A checkpoint's generation defaults, with what the user asks for put over them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmt_cli.decoding.options import GenerationOptions

SAMPLING = ("temperature", "top_k", "top_p")


def override(defaults: GenerationOptions, given: Mapping[str, Any]) -> GenerationOptions:
    """Return `defaults` with the given fields put over them.

    Beams and sampling exclude each other, so what the user asks for displaces a default of the other kind: a
    temperature turns the checkpoint's beams off, and a number of beams its sampling.

    Raises:
        UsageError: a value is out of bounds, or two values exclude each other.
    """
    displaced: dict[str, Any] = {}
    if any(given.get(name) is not None for name in SAMPLING):
        displaced = {"num_beams": 1}
    elif given.get("num_beams", 1) > 1:
        displaced = dict.fromkeys(SAMPLING)
    # Lengths of the new text displace the checkpoint's lengths of prompt and text together.
    if "max_new_tokens" in given:
        displaced["max_length"] = None
    if "min_new_tokens" in given:
        displaced["min_length"] = 0
    return dataclasses.replace(defaults, **{**displaced, **given})
