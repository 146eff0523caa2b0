"""Programs of the benchmark `peers` that need no other library."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lit_illada.bench import peers, run
from lit_illada.bench.training_step import Case
from lit_illada.cli import main

GUIDE = (Path(peers.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_peers_alternate_with_ours_and_missing_libraries_are_reported(tmp_path):
    np.save(tmp_path / "tokens.npy", np.zeros(2**16, np.uint16))
    calls = []
    figures = peers._compared(
        Path(sys.executable), tmp_path, lambda: calls.append(1), ["memory_map", "litdata"], 10_000_000, 2
    )
    assert len(calls) == 2
    assert figures["memory_map_tokens_per_cpu_s"]["min"] > 0
    assert figures["over_memory_map"]["median"] > 1
    assert figures["litdata"]["did_not_run"].endswith("ModuleNotFoundError: No module named 'litdata'")


def test_the_guides_program_runs_beside_ours(tmp_path):
    """The example of the guide, as the user's program, on the arrays of a small step."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    file, folder = tmp_path / "clone" / "step.py", tmp_path / "arrays"
    file.parent.mkdir()
    folder.mkdir()
    file.write_text(f"import beside\n{code}")
    file.with_name("beside.py").write_text("")
    figures = peers._step(Path(sys.executable), folder, Case("pico", 2, 32), 2, {"own": file})
    assert figures["own_tokens_per_cpu_s"]["min"] > 0
    assert figures["over_own"]["min"] > 0


@pytest.mark.parametrize("word", ["mdlm", "=step.py", "mdlm=", "ours=step.py", "modernbert=step.py", "mdlm=none.py"])
def test_a_wrong_peer_is_refused_in_one_line(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("step.py").touch()
    done = CliRunner().invoke(main, ["bench", "peers", "--peer", word])
    assert done.exit_code == 1
    assert done.output.startswith("Error: --peer ")
    assert CliRunner().invoke(main, ["bench", "loss", "--peer", "mdlm=step.py"]).exit_code == 1


def test_the_guide_names_every_benchmark():
    named = re.findall(r"(?m)^\| `(\w+)` \|", GUIDE)
    assert sorted(named) == sorted([*run.BENCHES, "gpu", "peers"])
