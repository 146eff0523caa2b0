"""Durations as text."""

import pytest

from lit_illada.runtime.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (31.4, "31 s"), (89.4, "89 s"), (90, "2 min"), (600, "10 min"), (7200, "2.0 h"),
        (172_799, "48.0 h"), (172_800, "2.0 days"), (900_000, "10.4 days"), (86_400 * 1234.5, "1,234.5 days"),
    ],
)  # fmt: skip
def test_a_duration_has_one_unit(seconds, text):
    assert duration(seconds) == text
