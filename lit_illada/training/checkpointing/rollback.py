"""Takes a run back to an earlier checkpoint, safely against kills at any moment.

The rollback is first recorded in rollback.json; every action that carries it out is idempotent, and the record is
removed last. A process that starts on the folder completes a rollback that was interrupted.
"""

import json
from pathlib import Path
from typing import Any

from lit_illada.run_folder import RunFolder
from lit_illada.runtime.files import MissingFileError, read_json, write_atomically
from lit_illada.runtime.records import require_fields
from lit_illada.training.checkpointing.files import BEST, checkpoints_by_step, link_best, remove_checkpoint


def roll_back(folder: RunFolder, config: str, record: dict[str, Any]) -> None:
    """Remove the checkpoints after record["to_step"] and replace config.yaml by `config`, the text to resume with."""
    later = [path.name for at, path in checkpoints_by_step(folder.checkpoints).items() if at > record["to_step"]]
    rollback = {
        "number": len(folder.read_rollbacks()) + 1,
        "record": {**record, "removed": later[::-1]},
        "config": config,
    }
    write_atomically(folder.rollback, json.dumps(rollback) + "\n")
    complete_rollback(folder)


def complete_rollback(folder: RunFolder) -> None:
    """Complete an interrupted rollback, if there is one. Several processes may do so at the same time."""
    try:
        rollback = read_json(folder.rollback)
    except MissingFileError:
        return
    fields = {"number": int, "record": dict[str, Any], "config": str}
    require_fields(rollback, fields, str(folder.rollback))
    require_fields(rollback["record"], {"to_step": int}, f"{folder.rollback}: record")
    remove_after(folder.checkpoints, rollback["record"]["to_step"])
    folder.write_config(rollback["config"])
    folder.write_rollback(rollback["number"], rollback["record"])
    folder.rollback.unlink(missing_ok=True)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove every checkpoint saved after this step and return their paths.

    Removed newest first, so that a kill in between leaves a run without gaps. The link `best` is removed with its
    target; a later save sets it again.
    """
    later = [path for at, path in reversed(checkpoints_by_step(folder).items()) if at > step]
    for path in later:
        remove_checkpoint(path)
    if not (folder / BEST).exists():
        link_best(folder, None)
    return later
