"""Everything the README tells a reader to type works, on a small corpus and a tiny model."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.objective.mask_ratio import MaskRatio

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = re.compile(r"runs/demo-\d{8}-\d{6}(-sft)?")


def blocks(language):
    return [re.sub(r"(?m)^   ", "", text) for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def lines(program):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in commands if line.split()[:1] == [program]]


@pytest.fixture(scope="module")
def workplace(tiny_corpus, tmp_path_factory):
    """A folder with the reader's books in it."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_corpus, folder / "books")
    shutil.copy(tiny_corpus / "000.txt", folder / "book.txt")
    item = {"question": "alpha beta?", "choices": ["gamma", "delta"], "answer": 0}
    folder.joinpath("items.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    answer = {"response": "Wait, let me check this again. " * 9, "subject": "arithmetic"}
    folder.joinpath("answers.jsonl").write_text(json.dumps(answer) + "\n", encoding="utf-8")
    arms = [{**answer, "prompt": "alpha", "arm": arm} for arm in ("none", "hard stop", "linear ramp")]
    folder.joinpath("generations.jsonl").write_text("".join(json.dumps(arm) + "\n" for arm in arms), encoding="utf-8")
    turns = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
    chats = [{"messages": [{**turns[0], "content": f"alpha {n}"}, turns[1]]} for n in range(40)]
    folder.joinpath("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return folder


SMALL_DATA = [
    "data.tokenizer.vocab_size=300",
    "data.validation_fraction=0.2",
    "data.shard_tokens=1024",
    "data.num_processes=1",
]


def shortened(words, tiny_dataset, tiny_run):
    """The command on a small scale: what it names stays, the corpus and the model become small."""
    if words[0] == "config" or "--help" in words:
        return words
    if words[:2] == ["sweep", "run"] and "--resume" not in words:
        tiny = json.dumps([*tiny_dataset, *tiny_run, "data.row_length=32"])
        return [*words, "seeds=[0]", "budget.amount=1024", f"overrides.pretrain={tiny}"]
    if words[0] == "sweep":
        return words
    if words[0] == "launch":
        assert "--dry-run" in words
        return words
    if words[0] == "generate":
        return [*words, "generation.max_new_tokens=32"]
    if "--resume" in words:
        return [*words, "trainer.max_steps=6"]
    if words[:2] == ["loops", "run"]:
        return [*words, "reasoning.num_problems=2", "reasoning.depths=[1]", "generation.max_new_tokens=32"]
    if words[0] == "score":
        problems = ["reasoning.num_problems=2", "generation.max_new_tokens=32"] if "--reasoning" in words else []
        return [*words, "score.num_draws=4", *problems]
    if words[0] == "sft":
        run = [item for item in tiny_run if item.startswith(("trainer", "optim.schedule"))]
        epochs = ["epochs=null"] if any(word.startswith("epochs=") for word in words) else []
        return [*words, *run, *epochs, "trainer.max_steps=2", "sft_data.row_length=256", "evaluation.num_examples=0"]
    if words[:2] == ["data", "examples"]:
        return [*words, "sft_data.row_length=256"]
    if words[:2] == ["data", "prepare"]:
        return [*words, *SMALL_DATA]
    if words[0] == "pretrain" and "--resume" not in words:
        data = SMALL_DATA if "data=text" in words else tiny_dataset
        return [*words, *data, *tiny_run, "trainer.max_steps=4", "samples.generation.max_new_tokens=32"]
    return words


def test_every_make_target_it_names_exists():
    assert len(lines("make")) >= 2
    for line in lines("make"):
        target = shlex.split(line, comments=True)[1]
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_command_in_it_runs(workplace, tiny_dataset, tiny_run, monkeypatch):
    monkeypatch.chdir(workplace)
    commands = [shlex.split(line, comments=True)[1:] for line in lines("lit-illada")]
    assert len(commands) > 10
    # what makes runs and data comes first, so that the others have something to work on
    commands.sort(key=lambda words: words[0] != "pretrain" or "--resume" in words)
    for words in commands:
        words = [RUN.sub(lambda _: str(min(Path("runs").glob("demo-*"))), word) for word in words]
        if words[0] == "board":
            serve(words, workplace)
            continue
        result = CliRunner().invoke(main, shortened(words, tiny_dataset, tiny_run), catch_exceptions=False)
        assert result.exit_code == 0, f"{words}: {result.output}"
        if "--compare" in words:
            assert "hard stop → linear ramp" in result.output


def test_what_it_gives_to_torchrun_is_a_run_of_as_many_processes():
    (line,) = lines("torchrun")
    words = shlex.split(line)
    ours = words[words.index("lit_illada") + 1 :]
    assert words[words.index("lit_illada") - 1] == "-m"
    config = load(ours[0], ours[1:])
    assert config.trainer.world_size == int(words[words.index("--nproc-per-node") + 1])


def serve(words, folder):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lit_illada.cli", *words, "--port", "0"], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert "http://" in process.stdout.readline()
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server may not heed a gentler one while it starts
        process.communicate()


def test_the_distribution_it_adds_is_one():
    (code,) = [block for block in blocks("python") if "Triangular" in block]
    names = {"dataclass": dataclass, "MaskRatio": MaskRatio, "Tensor": Tensor}
    exec(code, names)
    triangular = names["Triangular"]()
    t = torch.linspace(*triangular.support, 10_001, dtype=torch.float64)
    assert torch.trapezoid(triangular.density(t), t).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(triangular.quantile(triangular.cdf(t)), t)
    (file,) = [yaml.safe_load(block) for block in blocks("yaml")]
    assert file.keys() - {"name"} == {field.name for field in fields(triangular)}


def test_the_pictures_and_files_it_names_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    assert not re.findall(r"@[A-Z]+@", README)


def test_every_choice_it_names_exists():
    table = README[README.index("| group | choices |") :].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        group_cell, choice_cell = row.strip("|").split("|")
        groups = re.findall(r"`([a-z_/]+)`", group_cell)
        for choice in re.findall(r"`([a-z0-9_]+)`", choice_cell.split("needs the extra")[0]):
            files = [ROOT / "conf" / group / f"{choice}.yaml" for group in groups]
            assert any(file.exists() for file in files), f"{groups}: {choice}"
