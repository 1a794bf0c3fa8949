from mmt_cli.benchmark.workload import random_text
from mmt_cli.model.presets import preset


def test_text_is_random_but_repeatable_and_of_the_vocabulary():
    config = preset("tiny", {"text.vocab_size": 5})
    first, same, other = (random_text(config, 2, 40, seed) for seed in (0, 0, 1))
    assert first == same != other
    assert [len(row) for row in first] == [40, 40]
    assert first[0] != first[1]
    assert {token for row in first for token in row} == set(range(5))


def test_image_has_its_placeholders_before_the_text_and_none_in_it():
    config = preset("tiny", {"text.vocab_size": 3, "fusion": {"kind": "splice"}})
    (row,) = random_text(config, 1, 20, 0)
    assert row[:16] == [2] * 16
    assert set(row[16:]) == {0, 1}
