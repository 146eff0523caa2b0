"""Paths of checkpoints on disk: naming, listing, atomic appearance and removal.

A checkpoint is a file where one process holds the whole state, and a folder where the state is sharded: `state.pt` with
everything but the sharded tensors, and one file of tensor parts per process. Both hold the same content under the same
names, and appear whole or not at all.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
STATE_FILE = "state.pt"
BEST = "best"  # symbolic link to the retained checkpoint with the lowest `RunModule.selected_by`
_SUFFIX = ".ckpt"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` optimizer steps."""
    return folder / f"step={step:08d}{_SUFFIX}"


def step_of(path: Path) -> int:
    """The number of optimizer steps in a checkpoint's name."""
    return int(path.stem.removeprefix("step="))


def parts_file(process: int, num_processes: int) -> str:
    """The name of the file with a process's tensor parts."""
    return f"parts-{process:05d}-of-{num_processes:05d}.safetensors"


def checksums_file(process: int, num_processes: int) -> str:
    """The name of the file with the checksum of a process's parts."""
    return f"checksums-{process:05d}-of-{num_processes:05d}.json"


def is_checkpoint(path: Path) -> bool:
    """Whether the path is a single checkpoint, as a file or a sharded folder, rather than any other folder."""
    return path.is_file() or (path / STATE_FILE).is_file()


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """The complete checkpoints of a folder, in ascending order of steps."""
    paths = {
        int(match[1]): path
        for path in folder.glob(f"*{_SUFFIX}")
        if (match := re.fullmatch(rf"step=(\d+){re.escape(_SUFFIX)}", path.name))
    }
    return dict(sorted(paths.items()))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a folder; None if it has none."""
    return next(reversed(checkpoints_by_step(folder).values()), None)


def newest_checkpoint_until(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a folder saved at or before this step; None if there is none."""
    return next((path for at, path in reversed(checkpoints_by_step(folder).items()) if at <= step), None)


def partial_of(path: Path) -> Path:
    """The hidden path at which a checkpoint is written until it is complete."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def publish_partial(path: Path) -> None:
    """Rename a completely written partial to its checkpoint path, atomically and durably."""
    if path.is_dir():
        _remove_folder(path)
    if partial_of(path).is_dir():
        sync_folder(partial_of(path))
    partial_of(path).replace(path)
    sync_folder(path.parent)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint atomically: a kill during the removal leaves a partial, not half a checkpoint."""
    if path.is_dir():
        _remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove the partial checkpoints that killed processes left behind. Must not run while the run is writing one."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def link_best(folder: Path, target: Path | None) -> None:
    """Point the link `best` to a checkpoint; None removes the link."""
    link = folder / BEST
    if target is None:
        link.unlink(missing_ok=True)
        return
    partial = partial_of(link)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name, target_is_directory=target.is_dir())
    partial.replace(link)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable against a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_folder(path: Path) -> None:
    # a folder cannot be removed atomically, but renamed to a partial it is no checkpoint any more
    removed = partial_of(path.with_name(f"{path.name}.removed"))
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was faster
        path.replace(removed)
    shutil.rmtree(removed, ignore_errors=True)
