"""Where the configs lie: inside an installed wheel, or at the top of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def conf_dir() -> Path:
    installed = _PACKAGE / "_share"
    return (installed if installed.is_dir() else _PACKAGE.parent) / "conf"
