"""Checkpoints that contain objects are rejected without executing anything."""

import os

import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.training.checkpointing.reading import read_checkpoint


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_code_is_rejected_without_torchs_advice(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Runs(f"touch {tmp_path / 'PWN'}")}, path)
    with pytest.raises(UserError, match=r"evil\.ckpt: not a readable checkpoint .*could run code") as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "weights_only" not in message
    assert "\n" not in message
    assert not (tmp_path / "PWN").exists()


def test_a_plain_pickle_is_rejected_without_torchs_advice(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old\.ckpt: not a readable checkpoint") as caught:
        read_checkpoint(path)
    assert not [word for word in ("torch.save", "please", "weights_only") if word in str(caught.value)]
