"""Likelihood of whole texts in nats/token and bits per byte, by the scorer's first rule."""

import math
from dataclasses import dataclass
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result
from lit_illada.runtime.terminal import print_lines
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.scorer import Scorer


@dataclass(frozen=True)
class TextLikelihood:
    """The evaluation of one text of any length, scored in windows."""

    path: Path
    """The file, for messages and the result."""
    text: str

    def check(self, model: LoadedModel) -> None:
        """Raises UserError for an empty text and for windows that exceed the model's positions."""
        self._windows(model.scorer)

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "TextResult":
        scorer = model.scorer
        windows = self._windows(scorer)
        rule, num_before = scorer.rules[0], scorer.num_forwards
        groups = [[window] for window in windows]
        scores = scorer.scores(groups, rule, progress(self.path.name, scorer.work(groups, rule)))
        # the chain rule over windows: their log-likelihoods add up to the text's
        whole, num_bytes = Score.sum([score for (score,) in scores]), len(self.text.encode())
        return TextResult(
            scorer.config.num_draws,
            kind="text",
            file=str(self.path),
            rule=rule.value,
            num_tokens=whole.num_tokens,
            num_bytes=num_bytes,
            num_windows=len(windows),
            nats=-whole.value,
            nats_stderr=whole.stderr,
            nats_per_token=-whole.value / whole.num_tokens,
            nats_per_token_stderr=whole.stderr / whole.num_tokens,
            bits_per_byte=-whole.value / (math.log(2) * num_bytes),
            num_forwards=scorer.num_forwards - num_before,
        )

    def _windows(self, scorer: Scorer) -> list[Candidate]:
        try:
            return scorer.windows(self.text)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error


class TextResult(Result):
    """Negative log-likelihood of a text: an upper bound, exact, or a chain-rule sum, by the rule."""

    def __init__(self, num_draws: int, **figures: object) -> None:
        super().__init__(figures)
        self._num_draws = num_draws

    def show(self) -> None:
        is_bound = self["rule"] == ScoreRule.BOUND
        qualifier = {"bound": "at most ", "confidence": "no likelihood: "}.get(self["rule"], "")
        stderr = f" ± {self['nats_per_token_stderr']:.4f}" if is_bound else ""
        nats, bits = f"{self['nats_per_token']:.4f}{stderr} nats/token", f"{self['bits_per_byte']:.4f} bits per byte"
        print_lines(f"{self['file']}: {qualifier}{nats}, {bits}")
        draws = f"; ± is the standard error of {self._num_draws} draws" if is_bound else ""
        print_lines(f"  by {self['rule']}: {self['num_tokens']:,} tokens, windows: {self['num_windows']:,}{draws}")
