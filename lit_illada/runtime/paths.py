"""Folders of the configs and sweeps: inside an installed wheel, or at the top of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def conf_dir() -> Path:
    """Return the folder of the YAML configs."""
    return _share() / "conf"


def sweeps_dir() -> Path:
    """Return the folder of the sweep specifications."""
    return _share() / "sweeps"


def _share() -> Path:
    installed = _PACKAGE / "_share"
    return installed if installed.is_dir() else _PACKAGE.parent
