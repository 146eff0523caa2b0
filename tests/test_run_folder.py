"""The folder of a run: interrupted writes, locks, names and hostile links."""

import errno
import fcntl
import json
import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder, commit_of
from lit_illada.runtime.files import temporary_of


def test_interrupted_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_config("seed: 1\n")
    folder.write_summary({"step": 1})

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    for write, content in ((folder.write_config, "seed: 2\n"), (folder.write_summary, {"step": 2})):
        with pytest.raises(KeyboardInterrupt):
            write(content)
    assert folder.config.read_text(encoding="utf-8") == "seed: 1\n"
    assert json.loads(folder.summary.read_text(encoding="utf-8")) == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "summary.json"]


def test_missing_file_locks_only_warn(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with RunFolder(tmp_path).held():
        pass
    assert "cannot be locked ([Errno" in caplog.text


def test_processes_of_two_machines_use_different_temporary_files(tmp_path, monkeypatch):
    """Even if their process ids are equal."""
    monkeypatch.setattr(os, "getpid", lambda: 41)
    one, other = (temporary_of(tmp_path / "config.yaml") for _ in range(2))
    assert one != other
    assert one.parent == other.parent == tmp_path


@pytest.mark.parametrize(
    "name", ["../../evil", "/abs/evil", "a/b", "..", ".hidden", "", " ", "a\nb", "\x1b[31m", "x" * 101]
)
def test_name_outside_runs_is_rejected(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a folder name") as caught:
        RunFolder.create(None, name, datetime(2026, 1, 1))
    assert caught.value.args[0].isprintable()
    assert list(tmp_path.iterdir()) == []


def test_provenance_is_not_written_through_a_symbolic_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    (tmp_path / "provenance.jsonl").symlink_to(outside)
    with pytest.raises(UserError, match=r"provenance\.jsonl: is a symbolic link"):
        RunFolder(tmp_path).write_provenance(datetime(2026, 1, 1))
    assert outside.read_text() == "mine\n"


@pytest.mark.parametrize("folder", ["link", "pipe", "folder"])
def test_lock_that_is_a_link_or_pipe_is_rejected(folder, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("kept")
    lock = RunFolder(tmp_path).lock
    {"link": lambda: lock.symlink_to(outside), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[folder]()
    with pytest.raises(UserError, match=r"training\.lock"), RunFolder(tmp_path).held():
        pass
    assert outside.read_text() == "kept"


@pytest.fixture
def checkout(tmp_path):
    """Run git in a checkout with one tracked file, module.py."""
    folder = tmp_path / "checkout"

    def git(*words):
        settings = ("user.name=a", "user.email=a@b", "commit.gpgsign=false", "tag.gpgsign=false")
        options = [word for setting in settings for word in ("-c", setting)]
        return subprocess.check_output(["git", *options, *words], cwd=folder, text=True).strip()

    folder.mkdir()
    git("init", "--quiet")
    (folder / ".gitignore").write_text(".venv\n")
    (folder / "module.py").write_text("")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    return folder, git


def test_the_commit_is_a_hash_also_after_a_release(checkout):
    folder, git = checkout
    git("tag", "--annotate", "v0.1.0", "--message", "release")
    assert commit_of(folder / "module.py") == git("rev-parse", "HEAD")
    (folder / "module.py").write_text("changed")
    assert commit_of(folder / "module.py") == git("rev-parse", "HEAD") + "-dirty"


def test_code_installed_inside_another_checkout_has_no_commit(checkout):
    folder, _ = checkout
    installed = folder / ".venv" / "lib" / "module.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert commit_of(installed) is None
    assert commit_of(folder.parent / "module.py") is None
