"""Imports torch at its first use.

Config dataclasses contain mathematics (a mask-ratio density, a loss weight, a commit rule), but importing torch takes
seconds, and a command that only reads or rejects a config should answer at once. Modules that `config` imports
write `from lit_illada.runtime.lazy import Tensor, torch` with `from __future__ import annotations` and use both as
usual; at run time `Tensor` serves annotations only.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:
    torch = LazyModule("torch")

    class Tensor:
        """A name for annotations; never instantiated."""
