"""Runs the `generate` command, with a live view of the text being unmasked."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from rich.live import Live
from rich.text import Text

from lit_illada.checkpoints.open import load_checkpoint
from lit_illada.commands.chat_hint import hint_at_chat
from lit_illada.config import load
from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.canvas import Commit
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import complete_batch
from lit_illada.generation.trace import Recorder, Trace, write_traces
from lit_illada.run_folder import flatten
from lit_illada.runtime.console import Console
from lit_illada.runtime.files import read_text
from lit_illada.runtime.terminal import print_content
from lit_illada.schema import to_tree
from lit_illada.training.config.trainer import Precision


def run_generate(
    checkpoint: Path,
    prompt: str | None,
    prompt_file: Path | None,
    live: bool | None,
    overrides: Sequence[str],
    trace_file: Path | None = None,
    draw: Callable[[Trace, str, Sequence[str]], None] | None = None,
    is_chat: bool = False,
) -> None:
    """Print the prompt's continuation on standard output; the live view goes to standard error.

    is_chat: the prompt is a user's message, and the continuation the assistant's.
    trace_file: where the trace is written; None writes none. draw: called with the trace, a title and the token texts.
    """
    config = load("generate", overrides)
    text = _prompt(prompt, prompt_file)
    if trace_file is not None and not trace_file.parent.is_dir():
        raise UserError(f"{trace_file}: no folder {trace_file.parent}")
    accelerator = config.accelerator.resolve()
    device, precision = accelerator.device, config.precision.resolve(accelerator)
    model, tokenizer = load_checkpoint(checkpoint, device, precision.dtype_of_loaded)
    if not is_chat:
        hint_at_chat(checkpoint, "--chat")
    message = [Message(Role.USER, text)]
    prompt_ids = ChatTemplate(config.template, tokenizer).encode_prompt(message) if is_chat else tokenizer.encode(text)
    console = Console(stderr=True)
    view = LiveView(tokenizer, console) if (console.is_terminal if live is None else live) else None
    recorder = Recorder(num_rows=1) if trace_file is not None or draw is not None else None
    watchers = [watcher for watcher in (view, recorder) if watcher is not None]

    def notify(commit: Commit) -> None:
        for watcher in watchers:
            watcher(commit)

    is_bf16 = precision is Precision.bf16_mixed
    with view or nullcontext(), torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        on_commit = notify if watchers else None
        generation = complete_batch(model, tokenizer, [prompt_ids], config.generation, on_commit=on_commit)
    written = tokenizer.decode(generation.texts()[0])
    print_content(written)
    if recorder is None:
        return
    (trace,) = recorder.traces()
    tokens = tokenizer.token_texts(trace.token_ids)
    if trace_file is not None:
        about = {
            "settings": to_tree(config.generation),
            "precision": precision.value,
            "checkpoint": str(checkpoint),
            "prompt": text,
            "text": written,
            "is_stopped": bool(generation.is_stopped[0]),
            "num_forwards": generation.num_forwards,
            **asdict(generation.events[0]),
            "tokens": tokens,
            "stop_text": tokenizer.names.eos_token,
        }
        write_traces(trace_file, [(trace, about)])
    if draw is not None:
        draw(trace, f"{checkpoint}   {_brief(config.generation)}", tokens)


def _brief(config: GenerationConfig) -> str:
    """Return the settings that differ from the defaults, on one line."""
    current, usual = flatten(to_tree(config)), flatten(to_tree(GenerationConfig()))
    return (
        "  ".join(f"{key}={value}" for key, value in current.items() if usual.get(key) != value) or "default settings"
    )


class LiveView:
    """Shows the text with a block for every [MASK] and the tokens of the last step in colour."""

    def __init__(self, tokenizer: Tokenizer, console: Console) -> None:
        self._tokenizer = tokenizer
        self._live = Live(console=console, refresh_per_second=12, transient=True, vertical_overflow="crop")

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, commit: Commit) -> None:
        text = Text()
        ids, is_new = commit.token_ids[0].tolist(), commit.is_committed[0].tolist()
        start = 0
        for end in range(1, len(ids) + 1):
            if end < len(ids) and self._style(ids[end], is_new[end]) == self._style(ids[start], is_new[start]):
                continue
            style = self._style(ids[start], is_new[start])
            is_mask = ids[start] == self._tokenizer.mask_token_id
            text.append("░" * (end - start) if is_mask else self._tokenizer.decode(ids[start:end]), style)
            start = end
        self._live.update(text, refresh=True)

    def _style(self, token_id: int, is_new: bool) -> str:
        if token_id == self._tokenizer.mask_token_id:
            return "dim"
        return "bold green" if is_new else "none"


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise UserError("give --prompt or --prompt-file, not both")
    if prompt is not None:
        return prompt
    if prompt_file is not None:
        return read_text(prompt_file)
    if sys.stdin.isatty():
        raise UserError("no prompt: give --prompt TEXT or --prompt-file FILE, or pipe text into the command")
    return sys.stdin.read()
