"""Multiple choice."""

from lit_illada.evaluation.multiple_choice import agreement


def test_agreement_is_the_fraction_of_items_with_the_same_choice():
    table = agreement({"a": [0, 1, 2, 3], "b": [0, 1, 0, 0], "c": [1, 1, 2, 3]})
    assert table == {
        "a": {"a": 1.0, "b": 0.5, "c": 0.75},
        "b": {"a": 0.5, "b": 1.0, "c": 0.25},
        "c": {"a": 0.75, "b": 0.25, "c": 1.0},
    }
