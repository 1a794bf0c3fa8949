"""Images with captions: what is hidden of them and found again."""

from collections.abc import Iterator

from mmt_cli.errors import UsageError
from mmt_cli.training.batches import image_batch
from mmt_cli.training.evaluate import Scores, chunks, score_masked
from mmt_cli.training.images import Prepared
from mmt_cli.training.objectives.masked import Masked
from mmt_cli.training.tasks.base import words_of
from mmt_cli.training.tasks.captions import CaptionTask


class MaskedTask(CaptionTask):
    """Images with captions; judged by hidden words and cells of others."""

    objective: Masked

    def build_objective(self) -> Masked:
        """Return what is learned."""
        config, preprocessing = self.captioner.model.config, self.captioner.preprocessing
        grid, _ = config.image_shape(preprocessing.height, preprocessing.width)
        if grid is None:
            raise UsageError(
                "merged tokens are no cells to hide (--objective masked, vision.merged_tokens above 0); merge none"
            )
        words = words_of(self.captioner)
        if config.placeholder_id == words.pad_id:
            raise UsageError(
                f"a hidden word would be taken for the image (fusion.placeholder_id {words.pad_id}, "
                f"the tokenizer's <pad> {words.pad_id}); use another placeholder"
            )
        objective = Masked(
            self.captioner.model,
            words,
            grid=grid,
            pixels=(config.vision.channels, preprocessing.height, preprocessing.width),
            label_smoothing=self.options.label_smoothing,
        )
        return objective.to(self.captioner.device)

    def prepare(self) -> Iterator[Prepared]:
        """Have the images prepared, and turn all captions into tokens."""
        yield from super().prepare()
        self.val_rows = self.encode(self.val_examples)

    def score(self) -> Scores:
        """Score what the model makes of hidden words and cells of the validation images."""
        start = len(self.start)
        stream = (
            image_batch([self.val_images.load(i) for i in indices], [self.val_rows[i] for i in indices], start=start)
            for indices in chunks(self.val_count)
        )
        return score_masked(self.objective, stream)
