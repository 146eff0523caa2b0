"""The project as it is installed."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import lit_illada
from lit_illada import api
from lit_illada.runtime.packages import REQUIRED

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_finds_its_configs_and_sweeps(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "lit_illada" / "_share" / "sweeps" / "LOG.md").is_file()
    assert (site / "lit_illada" / "py.typed").is_file()  # type checkers read the annotations of an installed package
    env = {**os.environ, "PYTHONPATH": str(site)}
    script = "import lit_illada, sys; from lit_illada.cli import main; print(lit_illada.__file__); main(sys.argv[1:])"
    command = [sys.executable, "-c", script, "config", "pretrain", "experiment=demo"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(site))
    assert "name: demo" in done.stdout
    for report in ("sweep", "loops"):
        page = site / "lit_illada" / report / "report" / "page"
        assert {file.name for file in page.iterdir()} == {"report.html.j2", "script.js", "style.css"}
    base = site / "lit_illada" / "report" / "page"
    assert {file.name for file in base.iterdir()} == {"base.html.j2", "base.css", "base.js"}


def test_the_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == lit_illada.__version__


def test_the_doctor_looks_for_what_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(REQUIRED) == project["dependencies"]


def test_the_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open() if "==" in line
    }
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=!]", name)[0].lower() for name in needed} <= pinned


def test_the_public_names_are_all_there():
    assert all(hasattr(api, name) for name in api.__all__)
