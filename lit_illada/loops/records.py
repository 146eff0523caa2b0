"""Generations from files of several origins: text, trace, true answer and groups.

Supported are traces and scored problems of this package, samples of lm-eval and files of d1. In other records, fields
are recognised by their usual names or named by the caller.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lit_illada.data.corpora.text_files import find_files
from lit_illada.errors import UserError, unknown
from lit_illada.loops.files import Digits, Entry, brief, read_entries

FILE = "file"  # group of the generations of one file
ARM = "arm"
# files of runs, sweeps and analyses that are not generations, and files that identify such folders
_BESIDE = {
    "provenance.jsonl",
    "checksums.json",
    "summary.json",
    "progress.json",
    "labels.json",
    "attempts.jsonl",
    "done.json",
    "plan.json",
}
_OURS = ("provenance.jsonl", "sweep.yaml")
_TEXT_FIELDS = ("text", "generation", "generations", "completion", "response", "output", "resps")
_PROMPT_FIELDS = ("prompt", "question", "problem", "input")
_CORRECT_FIELDS = ("is_right", "is_correct", "correct", "exact_match", "acc")
_TRUTH_FIELDS = ("truth", "ground_truth", "target")
_FINISHED_FIELDS = ("is_finished", "is_stopped", "finish_reason")
_GROUP_FIELDS = ("task", "length", "level", "difficulty", "arm", "model", "seed")
_TRACE_FIELDS = {
    "token_ids": "whole numbers",
    "tokens": "texts",
    "steps": "whole numbers",
    "confidence": "numbers",
    "entropy": "numbers",
}


@dataclass(frozen=True)
class Generation:
    """One generated text. None: not in the file. The lists of a trace have one entry per token."""

    file: str
    number: int  # line or position in the file, from 1
    text: str | None  # with its stop texts; None: only token ids are known
    prompt: str | None = None
    truth: Any = None  # the true answer
    is_right: bool | None = None
    is_finished: bool | None = None  # whether the model ended the text
    num_canvas: int | None = None  # positions that the model could write
    num_steps: int | None = None  # denoising steps
    groups: dict[str, str] = field(default_factory=dict)  # values by which texts are counted
    token_ids: list[int] | None = None
    tokens: list[str] | None = None
    steps: list[int] | None = None  # denoising step that committed each token
    confidence: list[float] | None = None  # probability at commitment
    entropy: list[float] | None = None  # nats, at commitment
    stop_text: str | None = None  # text of the model's end-of-text token


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields. None: recognised by convention."""

    text: str | None = None
    prompt: str | None = None
    correct: str | None = None  # whether the answer is right
    truth: str | None = None  # the true answer
    groups: tuple[str, ...] = ()  # further fields to count by


def read_generations(
    paths: Sequence[Path],
    fields: Fields | None = None,
    encoding: str | None = None,
    leave_out: Path | None = None,
    arm: str | None = None,
) -> Iterator[Generation]:
    """Generations of all files, in order.

    Args:
        paths: files, or folders whose .json, .jsonl and .ndjson files are read. Files of a run that are not
            generations, and lm-eval's results beside its samples, are skipped unless named themselves.
        fields: names of the records' fields.
        encoding: of the files; None: UTF-8, or UTF-16 with a byte-order mark.
        leave_out: a file to skip, such as the output of an earlier analysis.
        arm: condition of all generations, if the files do not name it.

    Raises:
        UserError: a record is malformed (with its line), or there are no generations.
    """
    found = find_files([str(path) for path in paths], (".json", ".jsonl", ".ndjson"))
    others = [path for path in found if leave_out is None or path.resolve() != leave_out.resolve()]
    if not others:
        raise UserError(f"{leave_out} is the output of an analysis: name the generations that it was made from")
    files = [path for path in others if path in paths or not _is_beside(path)]
    if not files:
        raise UserError(f"{paths[0]}: no generations in it, but {', '.join(path.name for path in others)}")
    labels = _labels(files)
    texts = _TEXT_FIELDS if fields is None or fields.text is None else (fields.text,)
    arms: set[str] = set()
    for path in files:
        is_empty = True
        for entry in read_entries(path, encoding, texts):
            is_empty = False
            if arm is not None:
                arms.add(str(entry.value.get(ARM, arm)))
                if len(arms) > 1:
                    raise UserError(
                        f"{entry.where}: the file for arm {arm} already contains the arms "
                        f"{', '.join(sorted(arms))}: give the file without --arm"
                    )
                entry = replace(entry, groups={**entry.groups, ARM: arm})
            yield from _generations(entry, str(path), labels[path], fields or Fields())
        if is_empty:
            raise UserError(f"{path}: no generations in it: the file is empty, or a header without rows")


def _generations(entry: Entry, file: str, label: str, fields: Fields) -> Iterator[Generation]:
    record, where = entry.value, entry.where
    name, texts = _texts(record, fields.text, where)
    others = {key: value for key, value in record.items() if key != name}
    groups = [name for name in fields.groups if name != FILE and name not in entry.groups]
    named = [(name, others) for name in (fields.prompt, fields.truth, fields.correct) if name is not None]
    named += [(name, record) for name in groups]
    if missing := next(((name, allowed) for name, allowed in named if name not in allowed), None):
        raise unknown(f"field in {where}:", *missing)
    settings = record["settings"] if isinstance(record.get("settings"), dict) else {}
    is_traced = len(texts) == 1 and isinstance(record.get("token_ids"), list)
    trace = {key: record[key] for key in _TRACE_FIELDS if isinstance(record.get(key), list)} if is_traced else {}
    _check_trace(trace, where)
    for text in texts:
        yield Generation(
            file=file,
            number=entry.number,
            text=text,
            prompt=_prompt(others, fields.prompt),
            truth=_value(others, fields.truth, _TRUTH_FIELDS),
            is_right=_verdict(others, fields.correct, where),
            is_finished=_finished(record),
            num_canvas=_count(entry.num_canvas, record.get("max_new_tokens"), settings.get("max_new_tokens")),
            num_steps=_count(entry.num_steps, record.get("num_forwards")),
            groups={FILE: label, **_groups(record, groups), **entry.groups},
            stop_text=record["stop_text"] if isinstance(record.get("stop_text"), str) and record["stop_text"] else None,
            **trace,
        )


def _texts(record: Mapping[str, Any], named: str | None, where: str) -> tuple[str | None, Sequence[str | None]]:
    """Field and texts of a record: one, or several in lm-eval's; [None] where only token ids exist."""
    usual = [name for name in _TEXT_FIELDS if name in record]
    name = named or next((name for name in usual if record[name] != ""), next(iter(usual), None))
    if name is None and isinstance(record.get("token_ids"), list):
        return None, [None]
    if name is None or name not in record:
        wanted = f"field {named!r}" if named else f"text under any of {', '.join(_TEXT_FIELDS)}"
        raise UserError(f"{where}: no {wanted}; its fields are {', '.join(record) or 'none'} (--text-field names one)")
    value = record[name]
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and not isinstance(item, Digits) for item in values):
        raise UserError(f"{where}: field {name!r} must contain generated text; got {brief(record[name])}")
    return name, values


def _prompt(record: Mapping[str, Any], named: str | None) -> str | None:
    value = _value(record, named, _PROMPT_FIELDS)
    if value is None and "arguments" in record:  # lm-eval's
        value = record["arguments"]
        while isinstance(value, list | dict) and value:
            value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)


def _value(record: Mapping[str, Any], named: str | None, usual: Sequence[str]) -> Any:
    if named is not None:
        return record[named]
    return next((record[name] for name in usual if record.get(name) is not None), None)


def _verdict(record: Mapping[str, Any], named: str | None, where: str) -> bool | None:
    """Whether the answer is right. An unnamed field counts only if boolean: "correct" may hold the right choice."""
    if named is None:
        values = (_truth_value(record.get(name), ("true", "false")) for name in _CORRECT_FIELDS)
        return next((value for value in values if value is not None), None)
    value = record[named]
    if value is None:
        return None
    if (verdict := _truth_value(value, ("true", "false", "1", "0"))) is not None:
        return verdict
    raise UserError(f"{where}: the verdict must be true, false, 1 or 0; got {brief(value)}")


def _truth_value(value: Any, words: Sequence[str]) -> bool | None:
    """Boolean of a value: a boolean, 0, 1 or one of `words`, which alternate between true and false."""
    if isinstance(value, str):
        word = value.strip().lower()
        return words.index(word) % 2 == 0 if word in words else None
    return bool(value) if value in (0, 1) else None


def _finished(record: Mapping[str, Any]) -> bool | None:
    value = next((record[name] for name in _FINISHED_FIELDS if record.get(name) is not None), None)
    if isinstance(value, str):
        return {"stop": True, "eos": True, "length": False, "true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _groups(record: Mapping[str, Any], named: Sequence[str]) -> dict[str, str]:
    usual = [name for name in _GROUP_FIELDS if isinstance(record.get(name), str | int | float)]
    return {name: str(record[name]) for name in [*usual, *named]}


def _labels(files: Sequence[Path]) -> dict[Path, str]:
    """Labels of files: the last two parts of their paths, or more until all differ."""
    for count in range(2, 2 + max(len(path.parts) for path in files)):
        labels = {path: "/".join(path.parts[-count:]) for path in files}
        if len(set(labels.values())) == len(files):
            break
    return labels


def _is_beside(path: Path) -> bool:
    folder = path.parent
    if path.name == "records.jsonl":
        return (folder / "effects.csv").is_file()
    is_ours = any((folder / name).is_file() for name in _OURS)
    is_table = path.name.startswith("results_") and any(folder.glob("samples_*.jsonl"))  # lm-eval's
    return folder.name == "tokenizer" or is_table or (is_ours and path.name in _BESIDE)


def _check_trace(trace: Mapping[str, list[Any]], where: str) -> None:
    lengths = {name: len(values) for name, values in trace.items()}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{where}: the lists of a trace must be equally long; {seen}")
    for name, values in trace.items():
        wanted = _TRACE_FIELDS[name]
        odd = next((place for place, value in enumerate(values) if not _IS_ONE[wanted](value)), None)
        if odd is not None:
            raise UserError(
                f"{where}: field {name!r} of a trace must contain {wanted}; got {brief(values[odd])} at {odd}"
            )


_IS_ONE: dict[str, Callable[[Any], bool]] = {
    "whole numbers": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "numbers": lambda value: type(value) in (int, float) and isfinite(value),
    "texts": lambda value: isinstance(value, str),
}


def _count(*values: Any) -> int | None:
    return next((value for value in values if isinstance(value, int) and value > 0), None)
