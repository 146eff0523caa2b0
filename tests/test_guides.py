"""Every command, link, picture and example of the guides works, on a small corpus and a tiny model."""

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
from lit_illada.objective.weighting import Weighting

ROOT = Path(__file__).parents[1]
GUIDES = sorted(
    path
    for folder in (".", ".github", "conf", "sweeps", "lit_illada", "lit_illada/*")
    for path in ROOT.glob(f"{folder}/*.md")
)
TEXTS = {path: path.read_text(encoding="utf-8") for path in GUIDES if path.name not in ("LOG.md", "CHANGELOG.md")}
RUN = re.compile(r"runs/demo-\d{8}-\d{6}(-sft)?")


def blocks(language):
    """The code blocks of a language in all guides; those inside lists are dedented."""
    found = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for text in TEXTS.values())
    return [re.sub(r"(?m)^   ", "", block) for guide in found for block in guide]


def lines(program):
    """The distinct commands of a program in all guides."""
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    distinct = {tuple(shlex.split(line, comments=True)): line for line in commands if line.split()[:1] == [program]}
    return list(distinct.values())


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
    pairs = [{"prompt": f"alpha {n}", "chosen": "beta", "rejected": "gamma"} for n in range(40)]
    folder.joinpath("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
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
        source = load("sft", words[2:]).sft_data.source
        sizes = [name for name in ("num_train", "num_validation", "num_harder") if hasattr(source, name)]
        few = [f"sft_data.source.{name}=40" for name in sizes]
        run = [item for item in tiny_run if item.startswith(("trainer", "optim.schedule"))]
        epochs = ["epochs=null"] if any(word.startswith("epochs=") for word in words) else []
        rows = ["sft_data.row_length=256", "evaluation.num_examples=0"]
        return [*words, *few, *run, *epochs, *rows, "trainer.max_steps=2"]
    if words[0] == "align":
        rows = ["prompts_per_step=2", "alignment.group_size=2", "rollout_rows=4", "problems.num_train=8"]
        if any(word.startswith("preferences=") for word in words):
            rows = ["prompts_per_step=2"]
        tokens = ["generation.max_new_tokens=16", "generation.num_steps=4"]
        steps = ["trainer.max_steps=2", "trainer.val_every_steps=2", "optim.schedule.warmup_steps=0"]
        small = ["trainer.val_rows=4", "trainer.micro_batch_rows=4"]
        return [*words, *rows, *tokens, *steps, *small]
    if words[:2] == ["data", "examples"]:
        return [*words, "sft_data.row_length=256"]
    if words[:2] == ["data", "prepare"]:
        return [*words, *SMALL_DATA]
    if words[0] == "pretrain" and "--resume" not in words:
        data = SMALL_DATA if "data=text" in words else tiny_dataset
        return [*words, *data, *tiny_run, "trainer.max_steps=4", "samples.generation.max_new_tokens=32"]
    return words


def test_every_make_target_exists():
    assert len(lines("make")) >= 2
    for line in lines("make"):
        target = shlex.split(line, comments=True)[1]
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_command_runs(workplace, tiny_dataset, tiny_run, monkeypatch):
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


def test_the_torchrun_command_starts_as_many_processes_as_the_run_has_devices():
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


def test_the_example_density_is_a_density():
    (code,) = [block for block in blocks("python") if "Triangular" in block]
    names = {"dataclass": dataclass, "MaskRatio": MaskRatio, "Tensor": Tensor}
    exec(code, names)
    triangular = names["Triangular"]()
    t = torch.linspace(*triangular.support, 10_001, dtype=torch.float64)
    assert torch.trapezoid(triangular.density(t), t).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(triangular.quantile(triangular.cdf(t)), t)
    (file,) = [yaml.safe_load(block) for block in blocks("yaml")]
    assert file.keys() - {"name"} == {field.name for field in fields(triangular)}


def test_the_example_weighting_is_a_weighting():
    (code,) = [block for block in blocks("python") if "SquareRoot" in block]
    names = {"dataclass": dataclass, "Weighting": Weighting, "Tensor": Tensor}
    exec(code, names)
    t = torch.tensor([0.04, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(names["SquareRoot"]()(t), torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64))


def test_links_and_pictures_exist():
    for path, text in TEXTS.items():
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (path.parent / link).exists(), f"{path.relative_to(ROOT)}: {link}"
        assert not re.findall(r"@[A-Z]+@", text), path


def test_the_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 230


def test_every_choice_of_the_generation_guide_exists():
    text = TEXTS[ROOT / "lit_illada" / "generation" / "README.md"]
    for group, choices in re.findall(r"(?m)^\| `(generation[a-z_/]*)` \| (.*) \|$", text):
        names = re.findall(r"`([a-z0-9_]+)`", choices)
        assert names
        for name in names:
            assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), f"{group}: {name}"


def test_the_python_example_of_the_readme_is_the_one_that_is_tested():
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS[ROOT / "README.md"], re.DOTALL)
    example = (ROOT / "tests" / "examples" / "own_trainer.py").read_text(encoding="utf-8")
    assert code.strip() in example.replace(", *sys.argv[1:]", "")
