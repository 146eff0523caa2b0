"""EleutherAI's lm-eval on our models: its three questions, answered by a Scorer and by generation.

The package is optional (the extra `eval`) and imported only when asked for.
"""

import difflib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.evaluation import Progress, Write, cut_at
from lit_illada.scoring.scorer import Scorer

log = logging.getLogger(__name__)


def evaluate(
    scorer: Scorer, write: Write, tasks: Sequence[str], include_path: Path | None, progress: Progress
) -> dict[str, Any]:
    """lm-eval's results for tasks by name, or by the path of a file that describes one; answers are scored by the
    scorer's first rule. Raises UserError where lm-eval is missing or knows no such task."""
    model = harness_model(scorer, write, progress)
    from lm_eval.evaluator import simple_evaluate
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
        return simple_evaluate(
            model, tasks=list(tasks), task_manager=manager, limit=scorer.config.limit, bootstrap_iters=1000
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # of a bad description, or data that is not there
        raise UserError(f"lm-eval on {', '.join(tasks)}: {' '.join(str(error).split())[:300]}") from error


def require_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'lit-illada[eval]'")


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
