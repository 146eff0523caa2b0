"""Fine-tuning examples: read from instruction files, or generated from chained-arithmetic problems."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lit_illada.data.corpora.assignment import split_of
from lit_illada.data.corpora.sources import OnBad, json_objects
from lit_illada.data.corpora.text_files import find_files
from lit_illada.data.dataset.manifest import VALIDATION
from lit_illada.data.sft.chat_template import Message, Role
from lit_illada.data.sft.config import (
    AlpacaSource,
    Gsm8kSource,
    InstructionFiles,
    MessagesSource,
    ReasoningSource,
    ShareGptSource,
    TaskSource,
)
from lit_illada.errors import UserError, unknown
from lit_illada.tasks.answers import final_number, normalized_reference
from lit_illada.tasks.base import Problem, Split, requested
from lit_illada.tasks.chains import ProblemRange


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an assistant's message."""

    messages: tuple[Message, ...]
    origin: str  # file:line, for messages
    truth: str | None = None  # reference that the last answer is compared with; None: there is none
    problem: Problem | None = None  # of a task, which checks the last answer instead; None: another source

    @property
    def prompt_digest(self) -> bytes:
        """Hash of everything before the last answer, which determines the split."""
        parts = [f"{m.role}\0{m.reasoning}\0{m.content}\0" for m in self.messages[:-1]]
        return hashlib.blake2b("".join(parts).encode(), digest_size=16).digest()

    def turns(self) -> list["Example"]:
        """One example per answer of the conversation, each with the preceding messages (LLaDA, section 2.3)."""
        ends = [end for end, message in enumerate(self.messages, 1) if message.role is Role.ASSISTANT]
        return [Example(self.messages[:end], self.origin) for end in ends[:-1]] + [self]


def read_examples(source: InstructionFiles, validation_fraction: float, on_bad: OnBad) -> tuple[list[Example], ...]:
    """(training, validation) examples; no prompt is in both.

    on_bad: called with the error of every malformed record; reading continues if it returns.
    """
    examples = list(_read(source, source.paths, "paths", on_bad))
    if source.validation_paths:
        validation = list(_read(source, source.validation_paths, "validation_paths", on_bad))
    else:
        validation = [e for e in examples if split_of(e.prompt_digest, validation_fraction) == VALIDATION]
    # also removes prompts of separate validation files from training
    held_out = {example.prompt_digest for example in validation}
    return [example for example in examples if example.prompt_digest not in held_out], validation


def make_examples(
    source: ReasoningSource, difficulty: ProblemRange, split: Split, num: int, held_out_fraction: float
) -> list[Example]:
    """`num` examples of a range whose problems belong to `split`, with reasoning as the source says.

    Raises UserError where the range has too few problems.
    """
    task = source.task(difficulty, held_out_fraction)
    return [
        Example(
            (Message(Role.USER, task.prompt(problem)), Message(Role.ASSISTANT, problem.answer, problem.solution)),
            problem.origin,
            problem.reference,
        )
        for problem in task.problems(split, num)
    ]


def task_examples(source: TaskSource, on_bad: OnBad) -> tuple[list[Example], ...]:
    """(training, validation) examples of a task; the reasoning is the problem's reference solution.

    on_bad: called with the error of every problem without a reference answer. Raises UserError for too few problems.
    """

    def examples(split: Split, num: int | None, key: str) -> Iterator[Example]:
        for problem in requested(source.task, split, f"sft_data.source.{key}", num):
            messages = (
                Message(Role.USER, source.task.prompt(problem)),
                Message(Role.ASSISTANT, problem.answer, problem.solution),
            )
            example = Example(messages, problem.origin, problem.answer, problem)
            try:
                _require_answer(example)
            except UserError as error:
                on_bad(error)
            else:
                yield example

    train = list(examples(Split.TRAIN, source.num_train, "num_train"))
    return train, list(examples(Split.VALIDATION, source.num_validation, "num_validation"))


def _read(source: InstructionFiles, paths: list[str], field: str, on_bad: OnBad) -> Iterator[Example]:
    if not paths:
        raise UserError(f"sft_data.source.{field} is empty; set it to files, globs or folders, such as [chats.jsonl]")
    parse = _parser(source)
    for record, origin in json_objects(find_files(paths, (".jsonl",)), on_bad):
        try:
            example = parse(record, origin)
            _require_answer(example)
        except UserError as error:
            on_bad(error)
        else:
            yield example


def _parser(source: InstructionFiles) -> Callable[[dict[str, Any], str], Example]:
    match source:
        case MessagesSource():
            return _conversation
        case ShareGptSource():
            return _sharegpt
        case AlpacaSource():
            return _alpaca
        case Gsm8kSource():
            return _gsm8k
    raise AssertionError(source)


def _conversation(record: dict[str, Any], origin: str) -> Example:
    rows = _field(record, "messages", list, origin)
    return _example(
        [_message(row, f"{origin}, message {number}") for number, row in enumerate(rows, 1)], record, origin
    )


def _sharegpt(record: dict[str, Any], origin: str) -> Example:
    rows = _field(record, "conversations", list, origin)
    messages = [_sharegpt_message(row, f"{origin}, message {number}") for number, row in enumerate(rows, 1)]
    if record.get("system"):
        messages.insert(0, Message(Role.SYSTEM, _field(record, "system", str, origin)))
    return _example(messages, record, origin)


def _sharegpt_message(row: object, origin: str) -> Message:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: a message must be an object with from and value; this is a {type(row).__name__}")
    speaker = _field(row, "from", str, origin)
    if speaker not in _SHAREGPT_ROLES:
        raise unknown(f"from in {origin}:", speaker, _SHAREGPT_ROLES)
    return _message({"role": _SHAREGPT_ROLES[speaker].value, "content": _field(row, "value", str, origin)}, origin)


def _example(messages: list[Message], record: dict[str, Any], origin: str) -> Example:
    """The example of a conversation. Raises UserError for an invalid order of roles."""
    roles = [message.role for message in messages]
    if Role.SYSTEM in roles[1:]:
        raise UserError(f"{origin}: a system message must be the first message")
    if Role.USER not in roles:
        raise UserError(f"{origin}: no message with the role 'user'; roles seen: {', '.join(roles) or 'none'}")
    if roles[-1] is not Role.ASSISTANT:
        raise UserError(f"{origin}: the last message must be the assistant's; roles seen: {', '.join(roles)}")
    truth = record.get("answer")
    return Example(tuple(messages), origin, None if truth is None else normalized_reference(str(truth)))


def _message(row: object, origin: str) -> Message:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: a message must be an object with role and content; this is a {type(row).__name__}")
    role = _field(row, "role", str, origin)
    if role not in set(Role):
        raise unknown(f"role in {origin}:", role, map(str, Role))
    content = _field(row, "content", str, origin)
    if role != Role.ASSISTANT:
        return Message(Role(role), content)
    if isinstance(reasoning := row.get("reasoning_content"), str):
        return Message(Role.ASSISTANT, content, reasoning)
    if match := re.fullmatch(r"\s*<think>(.*?)</think>(.*)", content, re.DOTALL):
        return Message(Role.ASSISTANT, match[2].strip(), match[1].strip())
    return Message(Role.ASSISTANT, content)


def _alpaca(record: dict[str, Any], origin: str) -> Example:
    instruction = _field(record, "instruction", str, origin)
    extra = _field(record, "input", str, origin) if record.get("input") else ""
    prompt = f"{instruction}\n\n{extra}" if extra else instruction
    return _dialogue(prompt, Message(Role.ASSISTANT, _field(record, "output", str, origin)), origin)


def _gsm8k(record: dict[str, Any], origin: str) -> Example:
    question, answer = (_field(record, name, str, origin) for name in ("question", "answer"))
    steps, mark, truth = answer.rpartition("####")
    if not mark:
        raise UserError(f"{origin}: the answer has no '####' before its number")
    steps = re.sub(r"<<.*?>>", "", steps).strip()
    number = final_number(truth)
    if truth.strip() and number is None:
        raise UserError(f"{origin}: no number after '####', but {truth.strip()[:60]!r}")
    message = Message(Role.ASSISTANT, truth.strip(), steps)
    return _dialogue(question, message, origin, str(number))


def _dialogue(prompt: str, answer: Message, origin: str, truth: str | None = None) -> Example:
    if not prompt.strip():
        raise UserError(f"{origin}: the prompt is empty")
    return Example((Message(Role.USER, prompt), answer), origin, truth)


def _require_answer(example: Example) -> None:
    for message in example.messages:
        if message.role is Role.ASSISTANT and not message.content.strip():
            raise UserError(f"{example.origin}: the assistant's answer is empty")
        try:
            f"{message.reasoning}{message.content}".encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{example.origin}: an unpaired surrogate, which is not valid text") from error


def _field(record: dict[str, Any], name: str, kind: type, origin: str) -> Any:
    if name not in record:
        raise UserError(f"{origin}: no field {name!r}; fields seen: {', '.join(map(str, record)) or 'none'}")
    if not isinstance(record[name], kind):
        raise UserError(f"{origin}: field {name!r} is a {type(record[name]).__name__}, not a {_KINDS[kind]}")
    return record[name]


_SHAREGPT_ROLES = {
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
}
_KINDS: dict[type, str] = {str: "text", list: "list"}
