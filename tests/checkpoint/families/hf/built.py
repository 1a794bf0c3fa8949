"""A model of a family as the other modules pass it on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Built:
    """A model of a family, and the folder that it lies in."""

    family: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any

    @property
    def end_ids(self) -> set[int]:
        """The ids that end a caption: BLIP's are in its text config, all others' in the generation config."""
        if self.family.startswith("blip"):
            return {self.model.config.text_config.sep_token_id}
        end = self.model.generation_config.eos_token_id
        return set(end) if isinstance(end, list) else {end}
