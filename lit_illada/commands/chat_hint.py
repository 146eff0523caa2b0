"""Hint for a fine-tuned model that receives its prompts without a chat template."""

import logging
from pathlib import Path

from lit_illada.checkpoints.open import run_of
from lit_illada.errors import UserError
from lit_illada.runtime.yaml_files import read_yaml

_log = logging.getLogger(__name__)
_GROUPS_OF_CHATS = {"sft_data", "alignment"}  # in the config of runs whose prompts have a chat template


def hint_at_chat(checkpoint: Path, setting: str) -> None:
    """Log a warning if the checkpoint is of a fine-tuning or an alignment. setting: what adds the template."""
    config = run_of(checkpoint).config
    try:
        groups = read_yaml(config).keys() if config.is_file() else set()
    except UserError:
        return  # a damaged config does not hinder the use of a checkpoint
    if groups & _GROUPS_OF_CHATS:
        _log.warning(
            "%s was fine-tuned with a chat template, but this command uses none: add %s for answers like those of its "
            "training",
            checkpoint,
            setting,
        )
