"""The benchmark of loop detection runs on texts of which a quarter loops."""

from lit_illada.bench import loops
from lit_illada.loops.detect.findings import detect


def test_every_figure_is_present():
    figures = loops.measure(repeats=1, num_texts=20)
    assert set(figures) == {"seconds_20_texts", "texts_per_s"}
    assert all(figure["min"] > 0 for figure in figures.values())


def test_quarter_of_texts_loops():
    findings = [detect(loops.text(seed)) for seed in range(40)]
    assert [item.is_loop for item in findings] == [seed % 4 == 0 for seed in range(40)]
    assert all(item.length == 512 for item in findings)
