"""Sudoku 4 × 4: what its checker accepts, and its problems."""

from itertools import product

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split, split_of
from lit_illada.tasks.sudoku4 import Sudoku4, grids

TASK = Sudoku4()
SOLUTION = "1234341221434321"
PROBLEM = Problem("0034\n3410\n2143\n4321", SOLUTION, 3, "here")
ROWS = "1234\n3412\n2143\n4321"


@pytest.mark.parametrize(
    "completion",
    [
        ROWS,
        SOLUTION,
        f"<answer>{ROWS}</answer>",
        f"<answer>\n{SOLUTION}\n</answer>",
        "<answer>1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1</answer>",
        "<answer>1|2|3|4\n-+-+-+-\n3|4|1|2\n2|1|4|3\n4|3|2|1</answer>",
        f"the puzzle\n0034\n3410\n2143\n4321\n\nhas the solution\n{ROWS}\n\nas 4 rows show.",
        f"<answer>4321</answer> no: <answer>{ROWS}</answer>",
        rf"\boxed{{{SOLUTION}}}",
    ],
)
def test_solutions_are_right(completion):
    assert TASK.check(PROBLEM, completion).correct


@pytest.mark.parametrize(
    ("completion", "reason", "score"),
    [
        ("", "no grid", 0),
        ("<answer></answer>", "no grid", 0),
        ("1234341221434", "no grid", 0),
        (SOLUTION + "1", "no grid", 0),
        ("0034\n3410\n2143\n4321", "0 of 3", 0),
        ("1134\n3412\n2143\n4321", "2 of 3", 2 / 3),
        ("4321\n2143\n3412\n1234", "given cell is changed", 0),
        ("1243\n3412\n2143\n4321", "given cell is changed", 0),
        ("1234\n3412\n2143\n4329", "given cell is changed", 0),
        ("9934\n3419\n2143\n4321", "0 of 3", 0),
        ("1234, 3412, 2143, 4321, 1234", "no grid", 0),
    ],
)
def test_other_completions_are_wrong_for_a_named_reason(completion, reason, score):
    verdict = TASK.check(PROBLEM, completion)
    assert not verdict.correct
    assert reason in verdict.reason
    assert verdict.score == pytest.approx(score)


def test_there_are_288_grids():
    assert grids().shape == (288, 16)
    for grid in grids().reshape(-1, 4, 4):
        for cells in [*grid, *grid.T, *(grid[r : r + 2, c : c + 2].ravel() for r, c in product((0, 2), (0, 2)))]:
            assert sorted(cells) == [1, 2, 3, 4]


def test_no_solution_is_in_two_splits():
    solutions = [{p.reference for seed in (0, 1) for p in Sudoku4(seed).problems(split, 300)} for split in Split]
    assert len(set.union(*solutions)) == sum(map(len, solutions))
    for split, seen in zip(Split, solutions, strict=True):
        assert {split_of(solution, 0.1) for solution in seen} == {split}
    assert len(solutions[0]) > 150


def test_puzzles_have_one_solution_and_the_configured_number_of_empty_cells():
    problems = Sudoku4(min_empty=8, max_empty=12).problems(Split.TRAIN, 200)
    assert {problem.difficulty for problem in problems} == {8, 9, 10, 11, 12}
    for problem in problems:
        given = problem.question.replace("\n", "")
        fits = [all(c in ("0", str(d)) for c, d in zip(given, grid, strict=True)) for grid in grids()]
        assert sum(fits) == 1
        assert given.count("0") == problem.difficulty


@pytest.mark.parametrize("fields", [{"min_empty": 0}, {"max_empty": 13}, {"min_empty": 9, "max_empty": 8}])
def test_impossible_ranges_are_rejected(fields):
    with pytest.raises(UserError, match="must be"):
        Sudoku4(**fields)
