"""What the fork server imports, so that no command pays for it: every module that a command may import."""

import importlib
import os
import pkgutil

import lit_illada

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
for _module in pkgutil.walk_packages(lit_illada.__path__, "lit_illada."):
    if not _module.name.endswith("__main__") and ".bench" not in _module.name:
        importlib.import_module(_module.name)
