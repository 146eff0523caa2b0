"""How are many answers written with one model? In batches, a row's text being what it would be alone."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_illada import build
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.evaluation.task_scores import Answer
from lit_illada.generation.canvas import Alarm, RowEvents, ThinkingEnd
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.trace import Recorder, Trace, rounded
from lit_illada.model.transformer import Transformer
from lit_illada.runtime.files import ContentError, parse_json, read_text, write_atomically
from lit_illada.schema import to_tree


@dataclass(frozen=True)
class Written:
    """token_ids: without the stop token. is_stopped: the model ended the text within its budget. events: what the
    mitigations did. num_forwards: its share of the forward passes of its batch. trace: where asked for."""

    token_ids: list[int]
    is_stopped: bool
    events: RowEvents
    num_forwards: float
    trace: Trace | None = None


@dataclass(frozen=True, eq=False)
class Writer:
    """precision: bfloat16 where it is true, as a run of `bf16-mixed` trains. kept: a folder where answers are kept as
    they are written; those that lie there already, of the same model, are not written again."""

    model: Transformer
    tokenizer: Tokenizer
    generation: GenerationConfig
    batch_prompts: int
    is_bf16: bool = False
    kept: Path | None = None

    def write(self, prompts: Sequence[Sequence[int]], is_traced: bool = False) -> Iterator[Written]:
        """What continues each prompt, in the order of the prompts, a batch after the other.

        Prompts of like length share a batch, so that little is padded.
        """
        kept = self._kept(prompts, is_traced)
        done = kept.read() if kept is not None else {}
        before, given = set(done), 0
        for batch in _batches(prompts, self.batch_prompts):
            # a batch of which a kill has left a part is written again, in the same company
            if not before.issuperset(batch):
                texts = self._together([prompts[place] for place in batch], batch, is_traced)
                answers = dict(zip(batch, texts, strict=True))
                if kept is not None:
                    kept.add(answers)
                done |= answers
            while given in done:
                yield done.pop(given)
                given += 1

    def answers(
        self,
        encode: Callable[[str], list[int]],
        prompts: Sequence[str],
        max_new_tokens: int | None,
        temperature: float | None,
    ) -> Iterator[Answer]:
        """Texts for texts with their traces, under other settings where they are given."""
        config = self.generation
        if max_new_tokens is not None:
            config = replace(config, max_new_tokens=max_new_tokens)
        if temperature is not None:
            config = replace(config, temperature=temperature)
        for written in replace(self, generation=config).write([encode(prompt) for prompt in prompts], is_traced=True):
            yield Answer(self.tokenizer.decode(written.token_ids), self.about(written))

    def about(self, written: Written) -> dict[str, Any]:
        """How a text was written, as it is kept with it."""
        told = {
            "is_finished": written.is_stopped,
            "num_tokens": len(written.token_ids),
            "num_forwards": written.num_forwards,
            **asdict(written.events),
        }
        if written.trace is not None:
            told["tokens"] = [self.tokenizer.decode([token_id]) for token_id in written.trace.token_ids]
            told |= rounded(asdict(written.trace))
        return told

    def _kept(self, prompts: Sequence[Sequence[int]], is_traced: bool) -> "KeptAnswers | None":
        """Under a name that says what was asked, and how: an answer to anything else is not taken for one."""
        if self.kept is None:
            return None
        ways = [to_tree(self.generation), self.batch_prompts, self.is_bf16, is_traced]
        asked = json.dumps([[list(prompt) for prompt in prompts], *ways])
        return KeptAnswers(self.kept / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl")

    def _together(self, prompts: Sequence[Sequence[int]], places: Sequence[int], is_traced: bool) -> Iterator[Written]:
        recorder = Recorder(len(prompts)) if is_traced else None
        device = self.model.lm_head_weight.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.is_bf16):
            generation = build.complete_batch(
                self.model, self.tokenizer, prompts, self.generation, row_numbers=places, on_commit=recorder
            )
        traces: Sequence[Trace | None] = recorder.traces() if recorder else [None] * len(prompts)
        texts, are_stopped = generation.texts(), generation.is_stopped.tolist()
        for ids, is_stopped, events, trace in zip(texts, are_stopped, generation.events, traces, strict=True):
            yield Written(ids, is_stopped, events, generation.num_forwards / len(prompts), trace)


_MAX_ANSWERS_BYTES = 2**31  # of a file that only this package writes


@dataclass(frozen=True)
class KeptAnswers:
    """A line for each answer with the place of its prompt, in the order they came."""

    file: Path

    def add(self, answers: Mapping[int, Written]) -> None:
        lines = [json.dumps({"place": place, **asdict(written)}) + "\n" for place, written in answers.items()]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))

    def read(self) -> dict[int, Written]:
        """By place. A line that a kill has cut off is removed, so that the next one begins where it did."""
        if not self.file.is_file():
            return {}
        content = read_text(self.file, _MAX_ANSWERS_BYTES)
        whole = content[: content.rfind("\n") + 1]
        if whole != content:
            write_atomically(self.file, whole)
        answers = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            tree = parse_json(line, f"{self.file}, line {number}")
            try:
                answers[int(tree["place"])] = _written(tree)
            except (KeyError, TypeError, ValueError) as error:
                raise ContentError(f"{self.file}, line {number}: not a generated answer ({error!r})") from error
        return answers


def _written(tree: Mapping[str, Any]) -> Written:
    events, trace = tree["events"], tree["trace"]
    alarms = tuple(Alarm(**alarm) for alarm in events["alarms"])
    return Written(
        tree["token_ids"],
        tree["is_stopped"],
        RowEvents(ThinkingEnd(events["thinking_stop"]), alarms),
        tree["num_forwards"],
        None if trace is None else Trace(**trace),
    )


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of the prompts: windows of the given order, sorted by length within a few batches."""
    span = 8 * size
    for start in range(0, len(prompts), span):
        window = sorted(range(start, min(start + span, len(prompts))), key=lambda place: len(prompts[place]))
        for first in range(0, len(window), size):
            yield window[first : first + size]
