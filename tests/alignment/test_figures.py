"""Figures of the held-out problems of an alignment run, by hand."""

import pytest
import torch
from scipy.stats import binomtest

from lit_illada.alignment.figures import held_out_figures


def table(**columns):
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}


def test_the_change_of_the_accuracy_since_the_start_has_the_paired_interval():
    now = table(correct=[1, 1, 1, 1, 1, 0])
    figures = held_out_figures(now, [True, False, False, False, False, False])
    change = [figures[f"val/accuracy_change{end}"] for end in ("", "_low", "_high")]
    # 4 gained of 6; Bonett and Price: 4 / (6 + 2) ± 1.96·√((5/8 + 1/8 − (4/8)²) / 8)
    assert change == pytest.approx([4 / 6, 4 / 8 - 1.959964 / 4, 4 / 8 + 1.959964 / 4], abs=1e-6)
    lost = held_out_figures(table(correct=[1, 0, 0, 0, 0, 0]), [True] * 5 + [False])
    assert [lost[f"val/accuracy_change{end}"] for end in ("", "_high", "_low")] == pytest.approx([-x for x in change])


def test_the_accuracy_has_wilsons_interval_and_the_error_complements_it():
    figures = held_out_figures(table(correct=[1, 1, 1, 0], length=[2, 4, 6, 9], index=[0, 1, 2, 3]), None)
    wilson = binomtest(3, 4).proportion_ci(method="wilson")
    assert figures == pytest.approx(
        {
            "val/accuracy": 0.75,
            "val/error": 0.25,
            "val/accuracy_low": wilson.low,
            "val/accuracy_high": wilson.high,
            "val/length": 5.25,
        }
    )


def test_a_validation_of_ties_alone_has_no_interval():
    assert held_out_figures(table(correct=[0.5, 0.5]), None) == {"val/accuracy": 0.5, "val/error": 0.5}


def test_problems_of_several_difficulties_have_an_accuracy_of_each():
    rows = table(correct=[1, 0, 1, 1], difficulty=[1, 1, 2, 2])
    figures = held_out_figures(rows, None, "max depth")
    assert {name: value for name, value in figures.items() if "depth" in name} == {
        "val/accuracy_max_depth_1": 0.5,
        "val/accuracy_max_depth_2": 1.0,
    }
