"""How well does a model solve chained arithmetic, made on the spot, and how does it write while it does?"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_illada.data.sft.arithmetic import make_examples
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft.config import ReasoningTask
from lit_illada.data.sft.instruction import Example
from lit_illada.errors import UserError
from lit_illada.evaluation.task_scores import Progress
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.loops.detect.findings import Known, detect_tokens
from lit_illada.stats.intervals import wilson
from lit_illada.tasks.answers import exact_match
from lit_illada.tasks.arithmetic import Portion


def problems(task: ReasoningTask) -> dict[str, list[Example]]:
    """The task's problems by level. Raises UserError where a level has too few."""
    return {
        level: make_examples(task.source(), range_, Portion.TEST, task.num_problems, task.held_out_fraction)
        for level, range_ in task.levels().items()
    }


def solve(
    by_level: dict[str, list[Example]], writer: Writer, template: ChatTemplate, file: Path, progress: Progress
) -> dict[str, Any]:
    """Answers to all, a line of `file` each as soon as its batch is written, with its trace; the figures by level.

    Raises UserError, before anything is written, for a problem and a budget that exceed the model's positions.
    """
    examples = [(level, example) for level, group in by_level.items() for example in group]
    pairs = template.encode_batch([example.messages for _, example in examples])
    longest = max(len(prompt) for prompt, _ in pairs)
    room = writer.model.config.max_position_embeddings - longest
    if writer.generation.max_new_tokens > room:
        raise UserError(
            f"generation.max_new_tokens is {writer.generation.max_new_tokens}, but the longest problem leaves {room} "
            f"of the model's {writer.model.config.max_position_embeddings} positions"
        )
    on_work = progress("problems", len(examples))
    rows = []
    with file.open("w", encoding="utf-8") as stream:
        written = writer.write([prompt for prompt, _ in pairs], is_traced=True)
        for (level, example), (_, response), one in zip(examples, pairs, written, strict=True):
            row = _row(level, example, len(response), one, writer, template)
            row |= _loop(row)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            rows.append(row)
            on_work(1)
    return {
        "kind": "reasoning",
        "num_items": len(rows),
        **_figures(rows),
        "levels": {level: _figures([row for row in rows if row["level"] == level]) for level in by_level},
    }


def _row(
    level: str, example: Example, gold_tokens: int, written: Written, writer: Writer, template: ChatTemplate
) -> dict[str, Any]:
    """gold_tokens: the length of the answer in the data, its EOS included.

    A text that neither closes its thought nor stops has no answer, whatever its budget cut off last.
    """
    assert example.truth is not None
    response = template.read(written.token_ids)
    has_ended = written.is_stopped or response.reasoning is not None or not example.messages[-1].reasoning
    return {
        "level": level,
        "prompt": example.messages[0].content,
        "text": writer.tokenizer.decode(written.token_ids),
        "truth": example.truth,
        "answer": response.answer,
        "is_right": has_ended and exact_match(response.answer, example.truth),
        "is_reasoning_closed": response.reasoning is not None,
        "gold_tokens": gold_tokens,
        "max_new_tokens": writer.generation.max_new_tokens,
        **writer.about(written),
    }


def _loop(row: dict[str, Any]) -> dict[str, Any]:
    """How it loops: detected on the model's own tokens."""
    known = Known(row["is_finished"], has_answer=bool(row["answer"]), num_canvas=len(row["token_ids"]))
    found = detect_tokens(row["token_ids"], row["tokens"], known=known, steps=row["steps"])
    return {
        "loop_kinds": [kind.value for kind in found.kinds],
        "is_loop": found.is_loop,
        "onset": found.main.onset if found.main is not None else None,
        "wasted": found.wasted,
    }


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    num_right = sum(row["is_right"] for row in rows)
    num_unfinished = sum(not row["is_finished"] for row in rows)
    return {
        "num_correct": num_right,
        "accuracy": num_right / len(rows),
        "wilson_95": list(wilson(num_right, len(rows))),
        "num_unfinished": num_unfinished,
        "unfinished": num_unfinished / len(rows),
        "looped": sum(row["is_loop"] for row in rows) / len(rows),
        "endless": sum(row["is_loop"] or not row["is_finished"] for row in rows) / len(rows),
        "wasted": sum(row["wasted"] for row in rows) / max(1, sum(row["num_tokens"] for row in rows)),
        "mean_tokens": sum(row["num_tokens"] for row in rows) / len(rows),
        "num_forwards": sum(row["num_forwards"] for row in rows),
    }


def numbers(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What is told of a result in one number each, by name."""
    for level, figures in {"": result, **result["levels"]}.items():
        suffix = f"_{level}" if level else ""
        yield f"exact_match{suffix}", figures["accuracy"]
        for name in ("unfinished", "looped", "endless", "wasted", "mean_tokens", "num_forwards"):
            yield f"{name}{suffix}", figures[name]
