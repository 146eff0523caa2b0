"""The benchmark of the training loop runs, on the demo's own configuration."""

from lit_illada.bench import loop


def test_every_figure_is_there():
    figures = loop.measure(repeats=1, steps=1)
    assert set(figures) == {"lightning_s_per_step", "bare_s_per_step", "ratio"}
    assert all(figure["min"] > 0 for figure in figures.values())
