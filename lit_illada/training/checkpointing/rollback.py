"""How is a run taken back to an earlier checkpoint, so that a kill in the middle loses nothing of it?

What is to be done is written down first, in rollback.json; every step of doing it may be taken again.
"""

import json
from typing import Any

from lit_illada.run_folder import RunFolder
from lit_illada.runtime.files import MissingFileError, read_json, write_atomically
from lit_illada.runtime.records import require_fields
from lit_illada.training.checkpointing.files import checkpoints_by_step, remove_after


def roll_back(folder: RunFolder, config: str, record: dict[str, Any]) -> None:
    """Take the run back to the checkpoint of record["to_step"], to go on with this config.yaml."""
    later = [path.name for at, path in checkpoints_by_step(folder.checkpoints).items() if at > record["to_step"]]
    wanted = {
        "number": len(folder.read_rollbacks()) + 1,
        "record": {**record, "removed": later[::-1]},
        "config": config,
    }
    write_atomically(folder.rollback, json.dumps(wanted) + "\n")
    complete_rollback(folder)


def complete_rollback(folder: RunFolder) -> None:
    """Do what is left of a rollback that was begun; several processes may do it at the same time."""
    try:
        wanted = read_json(folder.rollback)
    except MissingFileError:
        return
    fields = {"number": int, "record": dict[str, Any], "config": str}
    require_fields(wanted, fields, str(folder.rollback))
    require_fields(wanted["record"], {"to_step": int}, f"{folder.rollback}: record")
    remove_after(folder.checkpoints, wanted["record"]["to_step"])
    folder.write_config(wanted["config"])
    folder.write_rollback(wanted["number"], wanted["record"])
    folder.rollback.unlink(missing_ok=True)
