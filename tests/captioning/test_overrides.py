"""What the user asks for over what the checkpoint says."""

import pytest

from mmt_cli.captioning.overrides import override
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError

BEAMS = GenerationOptions(num_beams=3, max_new_tokens=20, length_penalty=0.8)
SAMPLES = GenerationOptions(temperature=0.7, top_k=5)


def test_only_what_is_given_changes():
    changed = override(BEAMS, {"max_new_tokens": 7})
    assert (changed.max_new_tokens, changed.num_beams, changed.length_penalty) == (7, 3, 0.8)
    assert override(BEAMS, {}) == BEAMS


@pytest.mark.parametrize("given", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}])
def test_asking_for_samples_turns_the_checkpoints_beams_off(given):
    changed = override(BEAMS, given)
    assert changed.num_beams == 1
    assert changed.sampling


def test_asking_for_beams_turns_the_checkpoints_sampling_off():
    changed = override(SAMPLES, {"num_beams": 4})
    assert (changed.num_beams, changed.sampling) == (4, False)


def test_asking_for_one_beam_leaves_sampling_on():
    assert override(SAMPLES, {"num_beams": 1}).top_k == 5


def test_asking_for_both_is_refused():
    with pytest.raises(UsageError, match=r"num_beams 2 .*temperature 0\.5"):
        override(BEAMS, {"num_beams": 2, "temperature": 0.5})
