"""EleutherAI's lm-eval on models of this package: its three request types, answered by a Scorer and by generation.

The package is optional (the extra `eval`) and imported only when a harness task is evaluated.
"""

import copy
import difflib
import importlib.util
import json
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result
from lit_illada.evaluation.writer import Answer, Write, Writer, cut_at
from lit_illada.runtime.terminal import print_lines
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.scorer import Scorer

log = logging.getLogger(__name__)

_RESULT_KEYS = ("results", "groups", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples")


@dataclass(frozen=True)
class Harness:
    """The evaluation of lm-eval tasks."""

    tasks: Sequence[str]
    """Names, or paths of YAML files that describe a task."""
    include_path: Path | None = None
    """Folder with further task descriptions."""
    num_fewshot: int | None = None
    """Solved examples before each question; None: as each task defines."""

    @classmethod
    def read(cls, tasks: Sequence[str], include_path: Path | None, num_fewshot: int | None) -> "Harness":
        """Raises UserError where lm-eval is not installed."""
        require_harness()
        return cls(tasks, include_path, num_fewshot)

    def check(self, model: LoadedModel) -> None:
        """Nothing to compare: lm-eval reads its tasks itself, and prompts that are too long lose their beginning."""

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "HarnessResult":
        out = folder / "lm-eval"
        write = _fitting_write(model.writer, model.scorer)
        results = evaluate(model.scorer, write, self.tasks, self.include_path, progress, self.num_fewshot, out)
        figures = {key: results[key] for key in _RESULT_KEYS if key in results}
        # through JSON, since lm-eval's configs hold functions
        lm_eval = json.loads(json.dumps(figures, default=str))
        return HarnessResult(results, kind="harness", rule=model.scorer.rules[0].value, lm_eval=lm_eval)


class HarnessResult(Result):
    """lm-eval's results."""

    def __init__(self, results: dict[str, Any], **figures: Any) -> None:
        super().__init__(figures)
        self._results = results

    def show(self) -> None:
        """Prints lm-eval's own table."""
        from lm_eval.utils import make_table

        print_lines(make_table(self._results))


def evaluate(
    scorer: Scorer,
    write: Write,
    tasks: Sequence[str],
    include_path: Path | None,
    progress: Progress,
    num_fewshot: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """lm-eval's results for tasks by name or by file; likelihoods are computed by the scorer's first rule.

    out: the folder for lm-eval's own files, results_<time>.json and samples_<task>_<time>.jsonl; None: not written.
    Raises UserError where lm-eval is missing or has no such task.
    """
    model = harness_model(scorer, write, progress)
    import lm_eval.evaluator
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    files = [task for task in tasks if Path(task).suffix in (".yaml", ".yml")]
    if missing := [file for file in files if not Path(file).is_file()]:
        raise UserError(f"{missing[0]}: no such file")
    manager = TaskManager(
        include_path=None if include_path is None else str(include_path), include_defaults=len(files) < len(tasks)
    )
    for name in set(tasks) - set(files) - set(manager.all_tasks):
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"lm-eval has no task {name!r}{hint}")
    try:
        tracker = EvaluationTracker(output_path=None if out is None else str(out / "results.json"))
        tracker.general_config_tracker.model_source = "lit_illada"
        with _quiet_git(lm_eval.evaluator):
            results = lm_eval.evaluator.simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=scorer.config.limit,
                bootstrap_iters=1000,
            )
        if out is not None:
            _write_files(tracker, results)
        return results
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # a faulty task description, or missing data
        if _is_raised_here(error):
            raise
        raise UserError(f"lm-eval on {', '.join(tasks)}: {' '.join(str(error).split())[:300]}") from error


def _is_raised_here(error: BaseException) -> bool:
    """Whether the error comes from this package's answers to lm-eval rather than from lm-eval."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without `evaluate` itself
    return any(Path(frame.filename).is_relative_to(package) for frame in frames)


def require_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'lit-illada[eval]'")


def harness_model(scorer: Scorer, write: Write, progress: Progress = lambda what, amount: lambda done: None) -> Any:
    """An instance of lm-eval's LM, for its own functions. Raises UserError where the package is missing."""
    require_harness()
    from lm_eval.api.model import LM

    rule = scorer.rules[0]

    class LitIllada(LM):
        """Answers lm-eval's requests. A prompt that is too long loses its beginning, as in lm-eval's own models."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            candidates = [_fitting(scorer, *request.args) for request in requests]
            scores = scored(candidates, "loglikelihood")
            return [(one.value, greedy) for one, greedy in zip(scores, scorer.greedy(candidates), strict=True)]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            windows = [scorer.windows(request.args[0]) for request in requests]
            scores = iter(scored([one for text in windows for one in text], "loglikelihood_rolling"))
            return [Score.sum([next(scores) for _ in text]).value for text in windows]

        def generate_until(self, requests: list[Any]) -> list[str]:
            on_work = progress("generate_until", len(requests))
            # requests with the same settings share batches
            groups: dict[Any, list[int]] = {}
            for index, request in enumerate(requests):
                options = request.args[1]
                groups.setdefault((options.get("max_gen_toks"), options.get("temperature")), []).append(index)
            texts = [""] * len(requests)
            for (max_new_tokens, temperature), indices in groups.items():
                prompts = [requests[index].args[0] for index in indices]
                answers = write(prompts, max_new_tokens, temperature)
                for index, answer in zip(indices, answers, strict=True):
                    stops = requests[index].args[1].get("until") or []
                    texts[index] = cut_at(answer.text, [stops] if isinstance(stops, str) else stops)
                    on_work(1)
            return texts

    def scored(candidates: list[Candidate], what: str) -> list[Score]:
        groups = [[candidate] for candidate in candidates]
        return [score for (score,) in scorer.scores(groups, rule, progress(what, scorer.work(groups, rule)))]

    return LitIllada()


def _fitting_write(writer: Writer, scorer: Scorer) -> Write:
    """Generation after the end of each prompt that leaves room for the answer.

    A budget of all the model's positions or more is lowered to half of them.
    """
    max_length = scorer.model.max_length

    def write(prompts: Sequence[str], max_new_tokens: int | None, temperature: float | None) -> Iterator[Answer]:
        budget = writer.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        if budget >= max_length:
            log.warning(
                "a budget of %d tokens is lowered to %d, half of the model's positions", budget, max_length // 2
            )
            budget = max_length // 2
        encode = partial(_prompt_end, scorer, max_length - budget)
        return writer.answers(encode, prompts, budget, temperature)

    return write


def _prompt_end(scorer: Scorer, free: int, prompt: str) -> list[int]:
    """The last `free` tokens of a prompt."""
    prompt_ids = scorer.encode_prompt(prompt)
    if len(prompt_ids) > free:
        _warn_of_cut(prompt_ids, free)
    return prompt_ids[-free:]


def _warn_of_cut(prompt_ids: Sequence[int], free: int) -> None:
    log.warning("a prompt of %d tokens is cut to its last %d, the positions left by the answer", len(prompt_ids), free)


def _fitting(scorer: Scorer, prompt: str, answer: str) -> Candidate:
    """The candidate with the beginning of its prompt cut off where it exceeds the model's positions."""
    prompt_ids, answer_ids = scorer.encode_pair(prompt, answer)
    free = scorer.model.max_length - len(answer_ids)
    if not answer_ids or free < 0:
        raise UserError(
            f"an answer of {len(answer_ids)} tokens cannot be scored by a model of {scorer.model.max_length} positions"
        )
    if len(prompt_ids) > free:
        _warn_of_cut(prompt_ids, free)
        prompt_ids = prompt_ids[len(prompt_ids) - free :]
    return Candidate.answering(prompt_ids, answer_ids)


@contextmanager
def _quiet_git(evaluator: Any) -> Iterator[None]:
    """Silences git, which lm-eval calls for the commit of the working folder, and which complains outside of one."""
    original = getattr(evaluator, "get_git_commit_hash", None)

    def quiet() -> Any:
        stderr = os.dup(2)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        try:
            return original() if original is not None else None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

    if original is not None:
        evaluator.get_git_commit_hash = quiet
    try:
        yield
    finally:
        if original is not None:
            evaluator.get_git_commit_hash = original


def _write_files(tracker: Any, results: dict[str, Any]) -> None:
    """Writes the files of `lm_eval --output_path --log_samples`."""
    aggregated = {name: value for name, value in results.items() if name != "samples"}
    samples = copy.deepcopy(results.get("samples", {}))  # the tracker modifies its arguments
    tracker.save_results_aggregated(results=copy.deepcopy(aggregated), samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
