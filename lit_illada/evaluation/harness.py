"""EleutherAI's lm-eval on our models: its three questions, answered by a Scorer and by generation.

The package is optional (the extra `eval`) and imported only when asked for.
"""

import copy
import difflib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.evaluation.task_scores import Progress, Write, cut_at
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.scorer import Scorer

log = logging.getLogger(__name__)


def evaluate(
    scorer: Scorer,
    write: Write,
    tasks: Sequence[str],
    include_path: Path | None,
    progress: Progress,
    num_fewshot: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """lm-eval's results for tasks by name, or by the path of a file that describes one; answers are scored by the
    scorer's first rule.

    num_fewshot: solved examples before each question; None: what each task says. out: the folder that gets lm-eval's
    own files, results_<time>.json and samples_<task>_<time>.jsonl; None: none are written.
    Raises UserError where lm-eval is missing or knows no such task.
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
        raise UserError(f"lm-eval knows no task {name!r}{hint}")
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
    except (OSError, ValueError, KeyError, TypeError) as error:  # of a bad description, or data that is not there
        raise UserError(f"lm-eval on {', '.join(tasks)}: {' '.join(str(error).split())[:300]}") from error


def require_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'lit-illada[eval]'")


@contextmanager
def _quiet_git(evaluator: Any) -> Iterator[None]:
    """lm-eval asks git for the commit of the working folder, and lets git complain on stderr where there is none."""
    ask = getattr(evaluator, "get_git_commit_hash", None)

    def ask_quietly() -> Any:
        stderr = os.dup(2)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        try:
            return ask() if ask is not None else None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

    if ask is not None:
        evaluator.get_git_commit_hash = ask_quietly
    try:
        yield
    finally:
        if ask is not None:
            evaluator.get_git_commit_hash = ask


def _write_files(tracker: Any, results: dict[str, Any]) -> None:
    """What `lm_eval --output_path --log_samples` writes."""
    kept = {name: value for name, value in results.items() if name != "samples"}
    samples = copy.deepcopy(results.get("samples", {}))  # the tracker changes what it writes
    tracker.save_results_aggregated(results=copy.deepcopy(kept), samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)


def harness_table(results: dict[str, Any]) -> str:
    """lm-eval's own table of results."""
    from lm_eval.utils import make_table

    return make_table(results)


def harness_model(scorer: Scorer, write: Write, progress: Progress = lambda what, amount: lambda done: None) -> Any:
    """An instance of lm-eval's LM for its own functions. Raises UserError where the package is missing."""
    require_harness()
    from lm_eval.api.model import LM

    rule = scorer.rules[0]

    class LitIllada(LM):
        """Answers lm-eval's requests; a long prompt loses its beginning, as in lm-eval's own models."""

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
            # those of the same settings are written together
            groups: dict[Any, list[int]] = {}
            for place, request in enumerate(requests):
                options = request.args[1]
                groups.setdefault((options.get("max_gen_toks"), options.get("temperature")), []).append(place)
            texts = [""] * len(requests)
            for (max_new_tokens, temperature), places in groups.items():
                prompts = [requests[place].args[0] for place in places]
                written = write(prompts, max_new_tokens, temperature)
                for place, one in zip(places, written, strict=True):
                    stops = requests[place].args[1].get("until") or []
                    texts[place] = cut_at(one.text, [stops] if isinstance(stops, str) else stops)
                    on_work(1)
            return texts

    def scored(candidates: list[Candidate], what: str) -> list[Score]:
        groups = [[candidate] for candidate in candidates]
        return [score for (score,) in scorer.scores(groups, rule, progress(what, scorer.work(groups, rule)))]

    return LitIllada()


def _fitting(scorer: Scorer, prompt: str, answer: str) -> Candidate:
    prompt_ids, answer_ids = scorer.encode_pair(prompt, answer)
    room = scorer.model.max_length - len(answer_ids)
    if not answer_ids or room < 0:
        raise UserError(
            f"an answer of {len(answer_ids)} tokens cannot be scored by a model of {scorer.model.max_length} positions"
        )
    if len(prompt_ids) > room:
        log.warning("a prompt of %d tokens is cut to its last %d, all the model has room for", len(prompt_ids), room)
        prompt_ids = prompt_ids[len(prompt_ids) - room :]
    return Candidate.answering(prompt_ids, answer_ids)
