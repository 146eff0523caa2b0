"""The code of another commit can be read beside this one."""

import os
import subprocess
from pathlib import Path

import pytest

from lit_illada.bench import revision
from lit_illada.errors import UserError


def _git(folder: Path, *words: str) -> None:
    given = ["user.name=a", "user.email=a@example.org", "commit.gpgsign=false", "tag.gpgsign=false"]
    options = [word for setting in given for word in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *options, *words], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose tag `old` holds a package of version 1; its working tree has version 2 and an empty tag."""
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "nothing")
    _git(tmp_path, "tag", "empty")
    for name in ("lit_illada", "conf", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "version.txt").write_text("1", encoding="utf-8")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    _git(tmp_path, "tag", "old")
    (tmp_path / "lit_illada" / "version.txt").write_text("2", encoding="utf-8")
    monkeypatch.setattr(revision, "_REPOSITORY", tmp_path)
    return tmp_path


def test_the_code_of_a_revision_is_that_of_its_commit_and_leaves_the_working_tree_alone(repository):
    with revision.code_of("old") as code:
        assert (code / "lit_illada" / "version.txt").read_text(encoding="utf-8") == "1"
        assert {path.name for path in code.iterdir()} == {"lit_illada", "conf", "sweeps"}
    assert not code.exists()
    assert (repository / "lit_illada" / "version.txt").read_text(encoding="utf-8") == "2"


@pytest.mark.parametrize(
    ("name", "message"),
    [("older", "no commit, tag or branch"), ("--all", "no commit, tag or branch"), ("empty", "has no lit_illada")],
)
def test_a_revision_without_the_code_is_refused(repository, name, message):
    with pytest.raises(UserError, match=message), revision.code_of(name):
        pass


def test_outside_a_checkout_the_option_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(revision, "_REPOSITORY", tmp_path)
    with pytest.raises(UserError, match="git checkout"), revision.code_of("HEAD"):
        pass
