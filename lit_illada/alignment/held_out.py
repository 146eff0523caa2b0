"""The held-out prompts of an alignment run: completions at a validation, and their figures against the run's start."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_illada.alignment.figures import held_out_figures, sample_table
from lit_illada.alignment.prompts import Prompt
from lit_illada.alignment.reward_worker import RewardWorker
from lit_illada.alignment.rollout import RolloutSampler, Sample
from lit_illada.model.transformer import Transformer

log = logging.getLogger(__name__)


class HeldOut:
    """Results of one validation on this rank.

    samples: (index of the prompt, completion, whether it is correct); empty for preference pairs.
    first_correct: whether each prompt was solved at the start of the run; None before the first validation, and for
        preference pairs: at the start the policy is the reference, so all their margins are 0, and the accuracy is
        compared with one half.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampler: RolloutSampler, verdicts: RewardWorker | None, difficulty_name: str
    ) -> None:
        """verdicts: computes the term `correct` of completions; None: the prompts are preference pairs.
        difficulty_name: that of the task, for the accuracy by difficulty."""
        self.prompts = prompts
        self.sampler = sampler
        self.verdicts = verdicts
        self.difficulty_name = difficulty_name
        self.samples: list[tuple[int, Sample, bool]] = []
        self.first_correct: list[bool] | None = None
        self._tables: list[dict[str, Tensor]] = []
        self._is_change_missing = False

    def begin(self) -> None:
        """Clear the results of the previous validation."""
        self.samples, self._tables = [], []

    def sample(self, model: Transformer, index: Sequence[int]) -> list[Sample]:
        """Sample completions of the prompts of these numbers."""
        return self.sampler.sample(model, [self.prompts[each] for each in index], index)

    def add(self, index: Sequence[int], samples: Sequence[Sample]) -> None:
        """Judge completions of the prompts of these numbers."""
        assert self.verdicts is not None
        verdicts = self.verdicts([sample.answered for sample in samples]).by_term["correct"]
        correct = [value == 1.0 for value in verdicts]
        self.samples += zip(index, samples, correct, strict=True)
        problems = [sample.prompt.problem for sample in samples]
        difficulty = [problem.difficulty if problem is not None else 0.0 for problem in problems]
        columns = {"index": index, "correct": correct, "difficulty": difficulty}
        table = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
        self.add_table(table | sample_table(samples))

    def add_table(self, table: dict[str, Tensor]) -> None:
        """Add float64 columns with one row per prompt: `index`, `correct`, and others, of which means are reported."""
        self._tables.append(table)

    def figures(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures over the results of all ranks; the first call records which problems were solved at the start.

        gather: joins the rows of all ranks.
        """
        table = {name: gather(torch.cat([each[name] for each in self._tables])) for name in self._tables[0]}
        # a rank without a prompt for a batch has answered the first one again
        row_of = {int(index): row for row, index in enumerate(table["index"].tolist())}
        table = {name: values[[row_of[index] for index in sorted(row_of)]] for name, values in table.items()}
        if self.verdicts is None:
            return held_out_figures(table, None, self.difficulty_name)
        num, first = len(table["correct"]), self.first_correct
        if first is not None and len(first) != num and not self._is_change_missing:
            self._is_change_missing = True
            log.warning(
                "accuracy_change is left out: the run began with %d held-out problems and has %d now", len(first), num
            )
        figures = held_out_figures(table, first, self.difficulty_name)
        if first is None:
            self.first_correct = table["correct"].bool().tolist()
        return figures
