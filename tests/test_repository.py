"""The files around the package agree with each other: workflow, linters, citation, change log."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def make_recipes():
    """target -> its recipe lines of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^([a-z-]+):.*\n((?:\t.*\n)*)", text))


def test_the_workflow_runs_the_commands_of_ci():
    job = read_yaml(".github/workflows/test.yml")["jobs"]["test"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make test", "make lint types"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(command in ci for command in commands)


def test_the_workflow_covers_the_python_versions_of_the_classifiers():
    versions = read_yaml(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {version}" for version in versions] == [
        classifier for classifier in PROJECT["classifiers"] if re.search(r"Python :: \d\.\d", classifier)
    ]


def test_pre_commit_runs_the_linters_of_make():
    hooks = [hook["entry"] for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    recipes = make_recipes()
    tools = re.findall(r"\$\(BIN\)/(\w+ ?\w*)", recipes["lint"] + recipes["types"])
    assert [tool.split()[0] for tool in tools] == [Path(hook.split()[0]).name for hook in hooks]


def test_the_citation_names_the_version_and_licence_of_the_package():
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_change_log_begins_with_the_unreleased_changes_or_this_version():
    first = re.search(r"(?m)^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[1]
    assert first in ("Unreleased", PROJECT["version"])


def test_every_make_target_in_the_guides_exists():
    recipes = make_recipes()
    for guide in [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md")]:
        for code in re.findall(r"`make ([a-z -]+)`|(?:^|\n)make ([a-z -]+)", guide.read_text(encoding="utf-8")):
            for target in "".join(code).split():
                assert target in recipes, f"{guide.name}: make {target}"
