"""Code of another commit, to be measured beside this one."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from lit_illada.errors import UserError

_REPOSITORY = Path(__file__).parents[2]


@contextmanager
def code_of(revision: str) -> Iterator[Path]:
    """A temporary folder with the package, its configuration and its sweeps at a git revision of this repository.

    A program that has the folder in PYTHONPATH runs that code. Raises UserError outside a checkout of the repository,
    and for a revision that it does not have or that does not contain the package.
    """
    if not (_REPOSITORY / ".git").exists():
        raise UserError(f"--against {revision} reads the history of a git checkout, and {_REPOSITORY} is none")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if complaint := commit.stderr.decode(errors="replace").strip():  # such as an owner that git does not trust
        raise UserError(f"--against {revision!r}: git says: {complaint.splitlines()[-1]}")
    if commit.returncode != 0:
        raise UserError(f"--against {revision!r} is no commit, tag or branch of {_REPOSITORY}: see git log")
    archive = _git("archive", "--format=zip", commit.stdout.decode().strip(), "lit_illada", "conf", "sweeps")
    if archive.returncode != 0:
        raise UserError(f"--against {revision!r} has no lit_illada, conf and sweeps: name a later commit")
    with TemporaryDirectory() as folder:
        ZipFile(BytesIO(archive.stdout)).extractall(folder)
        yield Path(folder)


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    # within a git hook, these name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(["git", *words], cwd=_REPOSITORY, env=environment, capture_output=True)
    except OSError as error:
        raise UserError(f"--against needs git: {error.strerror}") from None
